"""What the machine did is told from times whose course is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.conditions import Conditions, observe_conditions
from edgewise.measure.latency import measure
from edgewise.measure.values import Latency
from edgewise.report.rows import Verdict
from edgewise.verify.gates import Limits, on_latency

STEADY = np.full(30, 2.0)
FULL = np.ones(30)


def noisy(times: np.ndarray, seed: int = 0) -> np.ndarray:
    return times[:, None] * np.random.default_rng(seed).normal(1, 0.01, (len(times), 20))


def test_a_steady_machine() -> None:
    found = observe_conditions(noisy(STEADY), STEADY, FULL)
    assert found.disturbances == found.remarks == () and found.leeway == 1.0


def test_a_shared_processor() -> None:
    found = observe_conditions(noisy(STEADY), STEADY, np.full(30, 0.55))
    assert found.cpu_share == 0.55 and found.leeway > 1
    assert found.disturbances == ("others used the processor: the calls had 55% of it",)


@pytest.mark.parametrize("course", [np.repeat([1.0, 1.0, 1.25], 10), np.repeat([1.0, 1.25, 1.0], 10)])
def test_a_falling_clock_slows_the_loop_and_the_calls_alike(course: np.ndarray) -> None:
    found = observe_conditions(noisy(STEADY * course), course, FULL)
    assert found.clock_change == pytest.approx(0.25)
    assert found.disturbances == ("the clock fell: a fixed loop took 25% longer than at first",)


def test_a_call_that_becomes_slower_by_itself() -> None:
    found = observe_conditions(noisy(STEADY * np.linspace(1, 1.3, 30)), STEADY, FULL)
    assert found.drift == pytest.approx(0.2, abs=0.03)
    assert len(found.disturbances) == 1 and "drifted by +" in found.disturbances[0]


def test_outliers_are_said_and_move_no_median() -> None:
    times = noisy(STEADY)
    times[:, :2] *= 5
    found = observe_conditions(times, STEADY, FULL)
    assert found.outliers == 0.1 and found.disturbances == () and found.leeway == 1
    assert found.remarks == ("10% of the calls took over 2 times the median",)


def test_noise_alone_is_rarely_called_a_disturbance() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for seed in range(200):
        found = observe_conditions(
            noisy(rng.normal(2, 0.02, 30), seed), rng.normal(1, 0.01, 30), rng.normal(0.99, 0.01, 30)
        )
        called += bool(found.disturbances)
    assert called <= 2


def test_few_blocks_tell_no_course() -> None:
    found = observe_conditions(noisy(np.array([1.0, 2.0, 3.0])), np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert (found.clock_change, found.drift) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "steady", "disturbed"),
    [
        (0.4, 0.5, "pass", "pass"),
        (0.93, 0.97, "pass", "not-checked"),
        (1.03, 1.06, "fail", "not-checked"),
        (1.3, 1.4, "fail", "fail"),
    ],
)
def test_a_disturbance_leaves_only_clear_cases_decided(
    low: float, high: float, steady: Verdict, disturbed: Verdict
) -> None:
    for share, verdict in ((1.0, steady), (0.5, disturbed)):
        conditions = Conditions(cpu_share=share, clock_change=0.0, drift=0.0, outliers=0.0)
        timed = Latency(
            on="onnx", batch=1, threads=1, p50_ms=1.0, p90_ms=1.0, ratio_to_baseline=(low + high) / 2, ci95=(low, high),
            conditions=conditions,
        )  # fmt: skip
        found = on_latency(timed, Limits())
        assert found.verdict == verdict
        assert ("others used the processor" in found.reason) == (verdict == "not-checked")


def test_a_measurement_tells_its_own_conditions() -> None:
    found = measure({"a": lambda: sum(range(2_000)), "b": lambda: sum(range(1_000))}, seconds=0.2, blocks=12)
    assert found.reference_ms.shape == found.cpu_share.shape == (12,)
    assert np.all(found.reference_ms > 0) and np.all(found.cpu_share > 0)
    assert found.conditions("a").outliers <= 1
