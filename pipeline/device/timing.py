"""A file's times on a device, recomputed from the blocks that it sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.device import conditions
from edgewise.device.conditions import Conditions
from edgewise.device.result import Block, Measured, Mode, Result, ResultError, Times
from edgewise.measure.statistics import ratio_interval
from edgewise.report.devices import DeviceTime, Kind

P99_CALLS = 1000
"""Fewest kept times that a 99th percentile is taken from."""
VALID = (1024, 60.0)
"""Calls and seconds that MLPerf Mobile asks for."""


def time_of(row: Measured, baseline: Measured | None, result: Result, kind: Kind) -> DeviceTime | None:
    """Percentiles, throughput, conditions, and the ratio to the device's own ``baseline`` where that may rank.

    Raises ResultError for times that contradict each other.
    """
    if row.latency is None:
        return None
    blocks = _blocks(row, result)
    blocks_kept = _kept_times(row, blocks)
    conditions_seen = conditions.judge_conditions(blocks, result.threads)
    ratio = _ratio(row, baseline) if kind == "real" and baseline is not None and baseline is not row else None
    minutes = _minutes(row.latency, result.mode)
    return DeviceTime(
        p50_ms=float(np.percentile(blocks_kept, 50)),
        p90_ms=float(np.percentile(blocks_kept, 90)),
        p99_ms=float(np.percentile(blocks_kept, 99))
        if len(blocks_kept) >= P99_CALLS and row.latency.per_timing == 1
        else None,
        calls=row.latency.calls,
        per_second=1e9 * row.latency.calls / row.latency.busy_ns,
        ratio_to_baseline=None if ratio is None else ratio[0],
        ci95=None if ratio is None else ratio[1],
        cpu_share=conditions_seen.cpu_share,
        state=conditions_seen.state,
        note=_timing_note(conditions_seen, row.target, row.latency, blocks, result),
        last_over_first=minutes[-1] / minutes[0] if len(minutes) > 1 else None,
        minutes=minutes,
    )


def _blocks(row: Measured, result: Result) -> Sequence[Block]:
    group = next((group for group in result.groups if group.target == row.target), None)
    if group is None or not group.blocks:
        raise ResultError(f"{row.file} has times, but nothing tells what the processor did meanwhile")
    return group.blocks


def _kept_times(row: Measured, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """All kept times in milliseconds. Raises ResultError for blocks that cannot be."""
    times = row.latency
    assert times is not None
    if len(times.times_ns) != len(blocks) or not all(times.times_ns):
        raise ResultError(f"{row.file}: wanted times in each of {len(blocks)} blocks, found {len(times.times_ns)}")
    flat = np.concatenate([np.array(block, np.float64) for block in times.times_ns])
    if flat.min() <= 0 or times.per_timing < 1:
        raise ResultError(f"{row.file}: a call took {flat.min():g} ns, which none does")
    wall = 1e6 * sum(block.wall_ms for block in blocks)
    if (
        times.calls < len(flat) * times.per_timing
        or not flat.sum() * times.per_timing * 0.99 <= times.busy_ns <= wall * 1.01
    ):
        raise ResultError(
            f"{row.file}: its {len(flat):,} times, {times.calls:,} calls and {times.busy_ns / 1e9:.3g} s contradict each "
            f"other, measured in {wall / 1e9:.3g} s"
        )
    return flat / 1e6


def _ratio(row: Measured, baseline: Measured) -> tuple[float, tuple[float, float]] | None:
    if row.latency is None or baseline.latency is None:
        return None
    ours, theirs = (
        np.array([np.median(block) for block in entry.times_ns]) for entry in (row.latency, baseline.latency)
    )
    return ratio_interval(ours, theirs) if len(ours) == len(theirs) > 1 else None


def _minutes(times: Times, mode: Mode) -> tuple[float, ...]:
    """Median of each minute, milliseconds; empty for a measurement that is not sustained."""
    if mode.name != "sustained":
        return ()
    number = max(1, round(mode.seconds / 60))
    parts = np.array_split(np.arange(len(times.times_ns)), min(number, len(times.times_ns)))
    flat = [np.concatenate([np.array(times.times_ns[i], np.float64) for i in part]) for part in parts]
    return tuple(float(np.median(part)) / 1e6 for part in flat)


def _timing_note(
    conditions_seen: Conditions, target: str, times: Times, blocks: Sequence[Block], result: Result
) -> str:
    share = max(1, sum(row.target == target and row.latency is not None for row in result.rows))
    seconds = sum(block.wall_ms for block in blocks) / 1000 / share
    calls, least = VALID
    place = _place(result)
    words = f"{place}; {conditions_seen.note}" if place else conditions_seen.note
    if times.calls >= calls and seconds >= least * 0.99:
        return words
    return f"{words}; {times.calls:,} calls in {seconds:.3g} s, MLPerf Mobile asks for {calls:,} and {least:.0f} s"


def _place(result: Result) -> str:
    """Which processors the times are of, and how fast beside the others where they differ; empty where none was chosen."""
    if not result.pinned:
        return ""
    clocks = {core.id: core.max_khz or 0 for core in result.device.cores}
    own, fastest = max(clocks.get(cpu, 0) for cpu in result.pinned), max(clocks.values(), default=0)
    numbers = f"processor{'s' if len(result.pinned) > 1 else ''} {', '.join(map(str, result.pinned))}"
    if len(set(clocks.values())) < 2 or not own:
        return numbers
    return f"{numbers}, {own // 1000:,} MHz at most" + (f" (the fastest: {fastest // 1000:,})" if own < fastest else "")
