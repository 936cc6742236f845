"""A device's measurement of a file, as the report holds and shows it beside the host's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgewise.measure.values import Accuracy, Interval
from edgewise.report import numbers
from edgewise.report.rows import Verdict
from edgewise.store.json_values import decode, encode_fields

Kind = Literal["real", "emulated", "wasm"]
"""Whose times they are: a processor's, an emulator's or a browser's. Only the first kind ranks files."""


@dataclass(frozen=True, kw_only=True)
class DeviceTime:
    """Times on the device, against the device's own baseline file in the same process."""

    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    """None from fewer than 1,000 kept calls."""
    calls: int
    per_second: float
    ratio_to_baseline: float | None
    """None for the baseline file itself and for times that do not rank."""
    ci95: Interval | None
    cpu_share: float | None
    """Share of the elapsed time in which the process had its processor."""
    state: Literal["steady", "starved", "throttled", "unknown"]
    note: str
    """What the state rests on, and what the mode asked for."""
    last_over_first: float | None = None
    """Sustained: median time of the last minute over that of the first."""
    minutes: tuple[float, ...] = ()
    """Sustained: median time of each minute, milliseconds."""


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One file on one device."""

    device: str
    """A name for people."""
    system: str
    """Model, processor and operating system."""
    kind: Kind
    target: str
    file: str
    precision: str
    sha256: str
    bundle: str
    runtime: str
    threads: int
    mode: str
    accuracy: Accuracy | None
    """On the bundle's slice; ``vs_baseline``: against the host's answers to the same images."""
    golden: str
    """How its golden answers compare, in words; empty where it has none."""
    time: DeviceTime | None
    load_ms: float | None
    first_call_ms: float | None
    peak_bytes: int | None
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object, where: str = "device") -> DeviceRow:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value, where)


MARKS: dict[Kind, str] = {"real": "", "emulated": "emulated", "wasm": "wasm"}


def time_words(row: DeviceRow) -> str:
    """The median and what it is worth: ``0.41 ms``, ``3.2 ms emulated``, ``0.5 ms starved``."""
    if row.time is None:
        return "–"
    state = row.time.state if row.kind == "real" and row.time.state in ("starved", "throttled") else MARKS[row.kind]
    return f"{numbers.significant(row.time.p50_ms)}{f' {state}' if state else ''}"


def ratio_words(row: DeviceRow) -> str:
    """Against the device's own baseline file: a ratio, or why there is none."""
    if row.time is None or row.time.ratio_to_baseline is None or row.time.ci95 is None:
        return ""
    low, high = row.time.ci95
    words = "no difference shown" if low <= 1 <= high else "faster" if high < 1 else "slower"
    return f"{numbers.ratio(row.time.ratio_to_baseline)} ({numbers.ratio(low)} to {numbers.ratio(high)}, {words})"


def device_grid(rows: Sequence[DeviceRow]) -> tuple[list[str], list[tuple[str, list[DeviceRow | None]]]]:
    """Devices down, files across: the files' names, and for each device its row of each file."""
    files = list(dict.fromkeys(row.file for row in rows))
    devices = dict.fromkeys(row.device for row in rows)
    rows_by_cell = {(row.device, row.file): row for row in rows}
    return files, [(device, [rows_by_cell.get((device, file)) for file in files]) for device in devices]
