"""Latency that can be believed: warmed up, interleaved in one run, at stated threads, with the spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def interleave_calls(
    contenders: Mapping[str, Call],
    *,
    seconds: float = 3.0,
    blocks: int = 30,
    most: int = 200,
    threads: int | None = None,
) -> dict[str, Samples]:
    """Time several calls against each other: in every block each is called in turn, in an order that rotates.

    Takes about ``seconds`` for all of them together, at least one call of each a block and at most ``most``.
    ``threads``: pinned to so many processors meanwhile, where the system can; None: left to the scheduler.
    """
    with pin_threads(threads):
        return _measured(contenders, seconds, blocks, most)


def _measured(contenders: Mapping[str, Call], seconds: float, blocks: int, most: int) -> dict[str, Samples]:
    for call in contenders.values():
        _once(call)
    spent = sum(min(_once(call) for _ in range(5)) for call in contenders.values())
    per_block = max(1, min(most, int(seconds * 1000 / (blocks * max(spent, 1e-6)))))
    times = {name: np.empty((blocks, per_block)) for name in contenders}
    order = list(contenders)
    for block in range(blocks):
        for turn in range(per_block):
            for name in order:
                times[name][block, turn] = _once(contenders[name])
            order.append(order.pop(0))
    return {name: Samples(values) for name, values in times.items()}


def _once(call: Call) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e6
