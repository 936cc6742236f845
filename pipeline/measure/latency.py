"""Latency that can be believed: warmed up, interleaved in one run, at stated threads, with the spread and the conditions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.measure.conditions import Conditions, observe_conditions
from edgewise.measure.cpus import pin_threads

Call = Callable[[], object]


@dataclass(frozen=True)
class Samples:
    """Times of one contender, in milliseconds."""

    times: NDArray[np.float64]
    """[blocks, calls per block]."""

    @property
    def blocks(self) -> NDArray[np.float64]:
        """Median of each block, [blocks]."""
        medians: NDArray[np.float64] = np.median(self.times, axis=1)
        return medians

    def percentile(self, q: float) -> float:
        """The q-th percentile (0 to 100) over all calls."""
        return float(np.percentile(self.times, q))


@dataclass(frozen=True, kw_only=True)
class Interleaved:
    """Times of several contenders, taken in turn in one run, and what the machine did meanwhile."""

    samples: Mapping[str, Samples]
    reference_ms: NDArray[np.float64]
    """Of a fixed loop, [blocks]: it changes with the clock and with nothing else."""
    cpu_share: NDArray[np.float64]
    """Processor time of this process over wall time, [blocks]."""

    def conditions(self, name: str) -> Conditions:
        """How steady one contender's times were."""
        return observe_conditions(self.samples[name].times, self.reference_ms, self.cpu_share)


def interleave_calls(
    contenders: Mapping[str, Call],
    *,
    seconds: float = 3.0,
    blocks: int = 30,
    most: int = 200,
    threads: int | None = None,
) -> dict[str, Samples]:
    """Times of several calls against each other, as ``measure`` takes them."""
    return dict(measure(contenders, seconds=seconds, blocks=blocks, most=most, threads=threads).samples)


def measure(
    contenders: Mapping[str, Call],
    *,
    seconds: float = 3.0,
    blocks: int = 30,
    most: int = 200,
    threads: int | None = None,
) -> Interleaved:
    """Time several calls against each other: in every block each is called in turn, in an order drawn anew each time.

    What ran before leaves its own in the caches: in an order that only rotates, who always follows the largest file looks
    slower by some percent than the same file elsewhere (LOG.md). The draws are the same in every run.

    Takes about ``seconds`` for all of them together, at least one call of each a block and at most ``most``.
    ``threads``: pinned to so many processors meanwhile, where the system can; None: left to the scheduler.
    """
    with pin_threads(threads):
        return _measure_blocks(contenders, seconds, blocks, most)


def _measure_blocks(contenders: Mapping[str, Call], seconds: float, blocks: int, most: int) -> Interleaved:
    for call in contenders.values():
        _time_once(call)
    trial_seconds = sum(min(_time_once(call) for _ in range(5)) for call in contenders.values())
    per_block = max(1, min(most, int(seconds * 1000 / (blocks * max(trial_seconds, 1e-6)))))
    times = {name: np.empty((blocks, per_block)) for name in contenders}
    reference, share = np.empty(blocks), np.empty(blocks)
    order, draw = list(contenders), random.Random(0)
    for block in range(blocks):
        cpu_time, began = time.process_time_ns(), time.perf_counter_ns()
        for turn in range(per_block):
            draw.shuffle(order)
            for name in order:
                times[name][block, turn] = _time_once(contenders[name])
        cpu_time, took = time.process_time_ns() - cpu_time, time.perf_counter_ns() - began
        share[block] = cpu_time / took if took else 1.0
        reference[block] = max(min(_time_once(_fixed_loop) for _ in range(_LOOPS)), 1e-9)
    return Interleaved(
        samples={name: Samples(values) for name, values in times.items()}, reference_ms=reference, cpu_share=share
    )


_LOOPS = 5
"""Rounds of the fixed loop in a block, of which the fastest counts: the others were interrupted."""


def _fixed_loop() -> int:
    """The same few thousand steps each time, in registers and the first cache."""
    total = 0
    for number in range(2_000):
        total += number * number & 7
    return total


def _time_once(call: Call) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6
