"""What a bundle writes on a device, as values: one JSON document, decoded strictly.

Times that end in ``_ns`` are nanoseconds, ``_ms`` milliseconds; memory is bytes; accuracies are fractions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgewise.errors import EdgewiseError
from edgewise.store.json_values import decode
from edgewise.store.reading import parse_json, read_regular

SCHEMA = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_BYTES = 16_000_000


class ResultError(EdgewiseError, ValueError):
    """A result that is not taken in; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How long was measured."""

    name: Literal["quick", "normal", "sustained", "brief"]
    calls: int
    """Least number of calls of each file."""
    seconds: float
    """For each file; sustained: for all of them together."""
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Core:
    """A processor that may be used."""

    id: int
    max_khz: int | None
    part: str | None


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the device told of itself."""

    name: str
    model: str
    os: str
    kernel: str
    machine: str
    cpu: str
    cores: tuple[Core, ...]
    memory_bytes: int | None
    emulated: str | None
    """The emulator, or ``wasm`` in a browser; None on a real processor."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A stretch of the measurement: what the processor did meanwhile."""

    wall_ms: float
    cpu_ms: float | None
    """Processor time of the process; None where it is not told."""
    reference_wall_ms: float
    reference_cpu_ms: float | None
    reference_ms: float
    """Median time of one reference loop: of the processor's where it is told, else elapsed."""
    stolen_ticks: int | None
    clock_khz: int | None
    temperature_c: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """The files of a target, timed in turn."""

    target: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Times:
    """A file's times."""

    times_ns: tuple[tuple[int, ...], ...]
    """[blocks][kept]: every so-manieth call of each block."""
    calls: int
    busy_ns: int
    """Elapsed time within all calls."""
    per_timing: int = 1
    """Calls that one entry of ``times_ns`` is the mean of; more than one where the clock is coarse."""


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """Milliseconds of loading the file, the first time in a process and the second."""

    first: float
    again: float


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What ran the file."""

    name: str
    version: str
    provider: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The accuracy that the device says it found."""

    top1: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One file, or why it was not measured."""

    target: str
    file: str
    error: str | None
    missing: bool
    latency: Times | None
    sha256: str = ""
    golden_answers: str | None = None
    """float32, the lower byte first, in base64."""
    answers: str = ""
    """The class of each image of the slice, four hexadecimal digits."""
    load_ms: LoadTimes | None = None
    first_call_ms: float | None = None
    peak_memory_bytes: int | None = None
    seconds: float = 0.0
    runtime: Runtime | None = None
    accuracy: Claim | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """The document."""

    schema: int
    kind: Literal["device"]
    bundle_sha256: str
    runner: str
    finished: bool
    mode: Mode
    device: Device
    governor: str | None
    threads: int
    pinned: tuple[int, ...]
    groups: tuple[Group, ...]
    rows: tuple[Measured, ...]


def read(path: Path) -> Result:
    """The result in a file. Raises ResultError for what is none."""
    try:
        content = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"cannot read {path} as a device's result: {error}") from error
    return parse(content, str(path))


def parse(content: bytes, where: str) -> Result:
    """A result from its bytes. Raises ResultError that names the place that does not fit."""
    if len(content) > MOST_BYTES:
        raise ResultError(f"{where}: wanted a result of at most {MOST_BYTES:,} bytes, found {len(content):,}")
    try:
        document: Any = parse_json(content)
        if isinstance(document, Mapping) and document.get("schema") != SCHEMA:
            raise ValueError(f"wanted schema {SCHEMA}, found {document.get('schema')!r}")
        decoded = decode(Result, document, "result")
    except ValueError as error:
        raise ResultError(f"{where} is no whole result of a device: {error}. Measure again") from error
    if _DIGEST.fullmatch(decoded.bundle_sha256) is None:  # it is looked up as a file's name
        raise ResultError(f"{where}: wanted the SHA-256 of a bundle, found {decoded.bundle_sha256!r:.80}")
    if not decoded.finished:
        raise ResultError(f"{where} is not finished: run the same command again, it goes on from there")
    return decoded
