"""Times of several files against each other, and what else the processor did meanwhile.

Each block also times a loop of fixed work. Its processor time tells the clock, with or without a sensor; processor time
over elapsed time tells whether something else had the processor, which a median of calls does not show.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import system as runner_system

BLOCKS = 30
MOST_KEPT = 200
"""Of each file's times in a block; of more, every so-manieth is kept and all are counted."""
LONGEST = 600.0
"""Seconds a file may take to be timed."""
_WORK = 4_000
_REFERENCE_EVERY = 0.02
"""Seconds of calls between two of it. Counted in rounds, not by the clock: the clock would always be due after the
scheduler has taken the processor away, just when a new slice begins."""


class Plan:
    """How long to measure."""

    def __init__(self, *, calls: int, seconds: float, blocks: int = BLOCKS) -> None:
        self.calls, self.seconds, self.blocks = calls, seconds, blocks


def reference() -> int:
    """A fixed amount of work in registers and first-level cache."""
    value = 1
    for _ in range(_WORK):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def measure(calls: dict[str, Callable[[], Any]], plan: Plan, cpus: Sequence[int]) -> dict[str, Any]:
    """Call each in turn, in an order drawn anew each time, for ``plan.seconds`` and ``plan.calls`` of each at least.

    Gives ``blocks``: for each what the processor did; and for each name ``times_ns`` [blocks][kept], ``calls``, all of
    them, and ``busy_ns``, elapsed time within them.
    """
    warm_up_seconds = _warm_up(calls, plan)
    meter = _Meter(calls, plan, warm_up_seconds, cpus)
    for _ in range(plan.blocks):
        meter.block()
    return {"blocks": meter.blocks, "files": meter.files}


def _warm_up(calls: dict[str, Callable[[], Any]], plan: Plan) -> float:
    """Seconds that one round of all takes, after as many rounds as caches, pools and clocks need to settle."""
    until = time.perf_counter() + min(1.0, plan.seconds / 10)
    fastest, rounds = math.inf, 0
    while rounds < 3 or (time.perf_counter() < until and rounds < 200):
        start = time.perf_counter()
        for call in calls.values():
            call()
        fastest, rounds = min(fastest, time.perf_counter() - start), rounds + 1
        reference()
    return fastest


class _Meter:
    def __init__(self, calls: dict[str, Callable[[], Any]], plan: Plan, spent: float, cpus: Sequence[int]) -> None:
        self.calls, self.cpus, self.order, self.draw = calls, cpus, list(calls), random.Random(0)
        self.least = math.ceil(plan.calls / plan.blocks)
        self.duration = plan.seconds * len(calls) / plan.blocks
        self.longest = LONGEST * len(calls) / plan.blocks
        self.stride = max(1, math.ceil(max(self.duration / max(spent, 1e-7), self.least) / MOST_KEPT))
        self.between = max(1, round(_REFERENCE_EVERY / max(spent, 1e-7)))
        self.blocks: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, Any]] = {name: {"times_ns": [], "calls": 0, "busy_ns": 0} for name in calls}

    def block(self) -> None:
        """One block."""
        for entry in self.files.values():
            entry["times_ns"].append([])
        references: list[Any] = []
        stolen, cpu, start = runner_system.stolen(), time.process_time_ns(), time.perf_counter_ns()
        rounds = 0
        while True:
            if rounds % self.between == 0:
                references.append(_time_reference())
            seconds = (time.perf_counter_ns() - start) / 1e9
            if (seconds >= self.duration and rounds >= self.least) or (rounds and seconds > self.longest):
                break
            self._round(keep=rounds % self.stride == 0)
            rounds += 1
        wall, cpu = time.perf_counter_ns() - start, time.process_time_ns() - cpu
        self.blocks.append(self._told(wall, cpu, references, stolen))

    def _round(self, keep: bool) -> None:
        clock = time.perf_counter_ns
        # What ran before leaves its own in the caches, and would always slow the same one.
        self.draw.shuffle(self.order)
        for name in self.order:
            call, entry = self.calls[name], self.files[name]
            start = clock()
            call()
            duration = clock() - start
            entry["calls"] += 1
            entry["busy_ns"] += duration
            if keep:
                entry["times_ns"][-1].append(duration)

    def _told(self, wall: int, cpu: int, references: list[Any], stolen: Any) -> dict[str, Any]:
        now = runner_system.stolen()
        temperature = runner_system.temperature_c()
        return {
            "wall_ms": wall / 1e6,
            "cpu_ms": cpu / 1e6,
            "reference_wall_ms": sum(entry[0] for entry in references) / 1e6,
            "reference_cpu_ms": sum(entry[1] for entry in references) / 1e6,
            "reference_ms": sorted(entry[1] for entry in references)[len(references) // 2] / 1e6,
            "stolen_ticks": None if now is None or stolen is None else now - stolen,
            "clock_khz": runner_system.clock_khz(self.cpus),
            "temperature_c": temperature,
        }


def _time_reference() -> Any:
    """Elapsed and processor time of the reference, in nanoseconds."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    reference()
    return time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
