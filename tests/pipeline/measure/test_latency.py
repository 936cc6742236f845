"""Interleaved timing with calls whose order and cost are known."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from edgewise.measure import cpus
from edgewise.measure.cpus import pin_threads
from edgewise.measure.latency import Samples, interleave_calls
from edgewise.measure.statistics import ratio_interval
from edgewise.measure.values import Latency
from edgewise.report.rows import Verdict
from edgewise.verify.gates import Limits, on_latency

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins threads")


def busy(milliseconds: float) -> None:
    """Compute for a while; sleeping would measure the scheduler."""
    end = time.perf_counter_ns() + milliseconds * 1e6
    while time.perf_counter_ns() < end:
        pass


WARM = 6
"""Calls of each contender before the measurement: one to warm up, five to estimate its time."""


def trace(names: str, blocks: int, most: int) -> list[str]:
    """Names in the order in which they were called in the measurement itself."""
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in names}
    interleave_calls(contenders, seconds=10.0, blocks=blocks, most=most)
    return calls[WARM * len(names) :]


def test_every_contender_is_called_equally_often() -> None:
    calls = trace("abc", blocks=5, most=7)
    assert Counter(calls) == {"a": 35, "b": 35, "c": 35}


def test_no_contender_is_always_first_nor_always_behind_the_same() -> None:
    calls = trace("abc", blocks=40, most=30)
    turns = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns), "each is called in every turn"
    places = Counter((place, name) for turn in turns for place, name in enumerate(turn))
    assert all(count == pytest.approx(400, rel=0.2) for count in places.values()) and len(places) == 9
    followed = Counter(pair for pair in itertools.pairwise(calls) if pair[0] != pair[1])
    assert len(followed) == 6 and min(followed.values()) > 0.8 * max(followed.values())


def test_the_order_is_the_same_in_every_run() -> None:
    assert trace("abcd", blocks=3, most=5) == trace("abcd", blocks=3, most=5)


def test_who_is_slowed_by_another_is_not_slower_than_its_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal files beside a large one, which slows whatever is called after it."""
    monkeypatch.setattr("edgewise.measure.latency.time", clock := Clock())
    last = ["twin"]

    def call(name: str) -> None:
        clock.lasts(3.0 if name == "large" else 1.2 if last[0] == "large" else 1.0)
        last[0] = name

    names = ("large", "first", "second")
    found = interleave_calls({name: (lambda name=name: call(name)) for name in names}, seconds=10.0, blocks=20, most=60)
    means = {name: found[name].times.mean() for name in names}
    assert means["first"] == pytest.approx(means["second"], rel=0.01)


def test_each_contender_is_warmed_up_first() -> None:
    durations = iter([50.0])

    def slow_at_first() -> None:
        busy(next(durations, 0.01))

    found = interleave_calls({"a": slow_at_first}, seconds=0.02, blocks=5)
    assert found["a"].percentile(50) < 10


def test_times_have_the_stated_shape() -> None:
    found = interleave_calls({"a": lambda: None, "b": lambda: None}, seconds=10.0, blocks=4, most=3)
    assert found["a"].times.shape == found["b"].times.shape == (4, 3)
    assert np.all(found["a"].times >= 0)


def test_at_least_one_call_a_block_however_short_the_time() -> None:
    found = interleave_calls({"a": lambda: busy(1)}, seconds=1e-6, blocks=3)
    assert found["a"].times.shape == (3, 1)


class Clock:
    """Time that passes where a call says so, whatever else the machine does."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    process_time_ns = perf_counter_ns

    def lasts(self, milliseconds: float) -> None:
        self.now += int(milliseconds * 1e6)


def test_the_asked_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.measure.latency.time", clock := Clock())
    interleave_calls({"a": lambda: clock.lasts(1), "b": lambda: clock.lasts(2)}, seconds=0.3, blocks=10)
    assert clock.now / 1e6 == 300 + 3 * WARM


def test_slower_contender_shows_its_ratio() -> None:
    found = interleave_calls({"slow": lambda: busy(0.6), "fast": lambda: busy(0.2)}, seconds=0.3, blocks=15)
    ratio, (low, high) = ratio_interval(found["slow"].blocks, found["fast"].blocks)
    assert low > 1
    assert 1.5 < ratio < 6
    assert low <= ratio <= high


def test_samples_give_block_medians_and_percentiles_over_all_calls() -> None:
    samples = Samples(np.array([[1.0, 2.0, 9.0], [4.0, 5.0, 3.0]]))
    assert samples.blocks.tolist() == [2.0, 4.0]
    assert samples.percentile(0) == 1.0
    assert samples.percentile(50) == 3.5
    assert samples.percentile(90) == 7.0  # of 1, 2, 3, 4, 5, 9: half way from the fifth to the sixth
    assert samples.percentile(100) == 9.0


STEADY = [1.0] * 30


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.8, 0.9] * 15, "pass"),
        ([1.1, 1.2] * 15, "fail"),
        ([0.5, 1.7] * 15, "not-checked"),
    ],
)
def test_spread_of_the_blocks_decides_whether_a_ratio_is_believed(ours: list[float], verdict: Verdict) -> None:
    mine, theirs = (Samples(np.array(times).reshape(30, 1)) for times in (ours, STEADY))
    ratio, interval = ratio_interval(mine.blocks, theirs.blocks)
    found = Latency(
        on="onnx",
        batch=1,
        threads=1,
        p50_ms=mine.percentile(50),
        p90_ms=mine.percentile(90),
        ratio_to_baseline=ratio,
        ci95=interval,
    )
    judged = on_latency(found, Limits(max_latency_ratio=1.0))
    assert judged.verdict == verdict
    assert ("too noisy to decide" in judged.reason) == (verdict == "not-checked")


# pinned to processors


@pytest.fixture
def worker() -> Iterator[int]:
    """A thread that Python does not know of, as a runtime's pool has: its number."""
    import _thread

    told: list[int] = []
    end = threading.Event()

    def run() -> None:
        told.append(threading.get_native_id())
        end.wait()

    _thread.start_new_thread(run, ())
    while not told:
        time.sleep(0.001)
    yield told[0]
    end.set()


@linux
def test_the_caller_and_the_pools_are_pinned_while_timed_and_given_back(worker: int) -> None:
    before = os.sched_getaffinity(0), os.sched_getaffinity(worker)
    seen = []
    interleave_calls(
        {"a": lambda: seen.append((os.sched_getaffinity(0), os.sched_getaffinity(worker)))},
        seconds=1.0,
        blocks=1,
        most=1,
        threads=1,
    )
    assert len(seen) == WARM + 1
    assert all(mine == theirs and len(mine) == 1 and mine <= before[0] for mine, theirs in seen)
    assert (os.sched_getaffinity(0), os.sched_getaffinity(worker)) == before


@linux
def test_a_failure_gives_the_processors_back(worker: int) -> None:
    before = os.sched_getaffinity(0), os.sched_getaffinity(worker)
    with pytest.raises(ZeroDivisionError):
        interleave_calls({"a": lambda: 1 / 0}, threads=1)
    assert (os.sched_getaffinity(0), os.sched_getaffinity(worker)) == before


@linux
def test_python_s_other_threads_are_left_alone() -> None:
    end = threading.Event()
    bar = threading.Thread(target=end.wait)
    bar.start()
    assert bar.native_id is not None
    before = os.sched_getaffinity(bar.native_id)
    with pin_threads(1):
        assert os.sched_getaffinity(bar.native_id) == before
    end.set()
    bar.join()


@linux
def test_no_more_processors_than_are_allowed_and_none_unasked() -> None:
    allowed = os.sched_getaffinity(0)
    with pin_threads(10_000) as chosen:
        assert chosen == allowed
    with pin_threads(None) as chosen:
        assert chosen == frozenset() and os.sched_getaffinity(0) == allowed


def test_a_second_processor_of_a_core_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_siblings", lambda cpu: {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}, 5: {4, 5}}[cpu])
    assert cpus._cores_first({0, 1, 2, 3, 5}) == [0, 2, 5, 1, 3]
