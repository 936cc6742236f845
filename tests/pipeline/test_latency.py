"""Interleaved timing with calls whose order and cost are known."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from pipeline.latency import Samples, interleave
from pipeline.statistics import ratio_interval


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
    interleave(contenders, seconds=10.0, blocks=blocks, most=most)
    return calls[WARM * len(names) :]


def test_every_contender_is_called_equally_often() -> None:
    calls = trace("abc", blocks=5, most=7)
    assert Counter(calls) == {"a": 35, "b": 35, "c": 35}


def test_order_rotates_so_that_no_contender_is_always_first() -> None:
    calls = trace("abc", blocks=1, most=6)
    turns = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert turns == ["abc", "bca", "cab", "abc", "bca", "cab"]


def test_order_goes_on_rotating_from_block_to_block() -> None:
    assert trace("ab", blocks=4, most=1) == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_each_contender_is_warmed_up_first() -> None:
    durations = iter([50.0])

    def slow_at_first() -> None:
        busy(next(durations, 0.01))

    found = interleave({"a": slow_at_first}, seconds=0.02, blocks=5)
    assert found["a"].percentile(50) < 10


def test_times_have_the_stated_shape() -> None:
    found = interleave({"a": lambda: None, "b": lambda: None}, seconds=10.0, blocks=4, most=3)
    assert found["a"].times.shape == found["b"].times.shape == (4, 3)
    assert np.all(found["a"].times >= 0)


def test_at_least_one_call_a_block_however_short_the_time() -> None:
    found = interleave({"a": lambda: busy(1)}, seconds=1e-6, blocks=3)
    assert found["a"].times.shape == (3, 1)


def test_about_the_asked_time_is_spent() -> None:
    started = time.perf_counter()
    interleave({"a": lambda: busy(1), "b": lambda: busy(2)}, seconds=0.3, blocks=10)
    assert 0.15 < time.perf_counter() - started < 1.5


def test_slower_contender_shows_its_ratio() -> None:
    found = interleave({"slow": lambda: busy(0.6), "fast": lambda: busy(0.2)}, seconds=0.3, blocks=15)
    ratio, (low, high) = ratio_interval(found["slow"].blocks, found["fast"].blocks)
    assert low > 1
    assert 1.5 < ratio < 6
    assert low <= ratio <= high


def test_samples_give_block_medians_and_percentiles_over_all_calls() -> None:
    samples = Samples(np.array([[1.0, 2.0, 9.0], [4.0, 5.0, 3.0]]))
    assert samples.blocks.tolist() == [2.0, 4.0]
    assert samples.percentile(0) == 1.0
    assert samples.percentile(50) == 3.5
    assert samples.percentile(100) == 9.0
