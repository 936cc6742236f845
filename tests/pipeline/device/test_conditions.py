"""Whether times can be believed: a competitor, a falling clock, and what cannot be told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from edgewise.device.conditions import judge_conditions
from edgewise.device.result import Block
from edgewise.device.runner.measure import Plan, measure, reference


def blocks(reference_ms: Sequence[float], share: float | None = 1.0, **fields: object) -> list[Block]:
    return [
        Block(
            wall_ms=100.0, cpu_ms=None if share is None else 100 * share, reference_wall_ms=10.0,
            reference_cpu_ms=None if share is None else 10 * share, reference_ms=each, stolen_ticks=0,
            clock_khz=None, temperature_c=None, **fields,
        )  # type: ignore[arg-type]
        for each in reference_ms
    ]  # fmt: skip


def test_a_processor_of_its_own_at_an_even_clock_is_steady() -> None:
    found = judge_conditions(blocks([1.0] * 30, 0.98), 1)
    assert (found.state, found.cpu_share) == ("steady", pytest.approx(0.98))


@pytest.mark.parametrize(("share", "state"), [(0.951, "steady"), (0.949, "starved"), (0.5, "starved")])
def test_less_than_95_percent_of_the_processor_is_starved(share: float, state: str) -> None:
    assert judge_conditions(blocks([1.0] * 30, share), 1).state == state
    assert judge_conditions(blocks([1.0] * 30, share), 4).state == state


@pytest.mark.parametrize(("last", "state"), [(1.04, "steady"), (1.06, "throttled"), (1.5, "throttled")])
def test_fixed_work_that_slows_by_more_than_5_percent_is_throttled(last: float, state: str) -> None:
    assert judge_conditions(blocks([1.0] * 20 + [last] * 10), 1).state == state


def test_a_clock_that_was_raised_in_between_and_fell_again_is_throttled() -> None:
    assert judge_conditions(blocks([1.2] * 10 + [1.0] * 10 + [1.2] * 10), 1).state == "throttled"
    assert judge_conditions(blocks([1.2] * 10 + [1.0] * 20), 1).state == "steady"


def test_where_fixed_work_varies_or_nothing_is_told_it_is_unknown() -> None:
    assert judge_conditions(blocks([1.0, 1.3] * 15), 1).state == "unknown"
    found = judge_conditions(blocks([1.0] * 30, None), 1)
    assert (found.state, found.cpu_share) == ("unknown", None)


def _spin(cpu: int) -> subprocess.Popen[bytes]:
    program = f"import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin to processors")
def test_a_competitor_on_the_pinned_processor_is_called_starved() -> None:
    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    competitor = _spin(cpu)
    try:
        os.sched_setaffinity(0, {cpu})
        found = measure({"file": reference}, Plan(calls=1, seconds=0.6, blocks=6), [cpu])
    finally:
        os.sched_setaffinity(0, allowed)
        competitor.kill()
        competitor.wait()
        assert competitor.stdout is not None
        competitor.stdout.close()
    verdict = judge_conditions([Block(**block) for block in found["blocks"]], 1)
    assert verdict.state == "starved" and verdict.cpu_share is not None and verdict.cpu_share < 0.8


def test_files_are_called_in_turn_and_every_call_is_counted() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = measure(calls, Plan(calls=50, seconds=0.05, blocks=5), [])
    total = sum(entry["calls"] for entry in found["files"].values())
    assert len(found["blocks"]) == 5 and found["files"]["a"]["calls"] == found["files"]["b"]["calls"] >= 50
    timed = order[len(order) - total :]
    turns = [tuple(timed[i : i + 2]) for i in range(0, total, 2)]
    assert all(sorted(turn) == ["a", "b"] for turn in turns)
    first = sum(turn[0] == "a" for turn in turns) / len(turns)
    assert 0.2 < first < 0.8, "an order drawn for each turn, so that none is always first"
    kept = found["files"]["a"]["times_ns"]
    assert len(kept) == 5 and all(1 <= len(block) <= 400 for block in kept)
    assert found["files"]["a"]["busy_ns"] >= sum(map(sum, kept))
