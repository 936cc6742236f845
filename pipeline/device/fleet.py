"""Many devices at once, from a TOML file: ``[devices.NAME]`` with an address and how to measure there.

Devices that are one physical machine wait for each other; one that fails stops no other.
"""

from __future__ import annotations

import threading
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgewise.device import bench, web
from edgewise.device.bench import Measurement, Request, Say
from edgewise.device.bundle import Bundle
from edgewise.errors import EdgewiseError, RequestError
from edgewise.store.json_values import decode
from edgewise.targets import MissingBackend


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One device, as the file has it."""

    address: str
    host: str | None = None
    """Name of the physical machine, where two addresses reach one."""
    threads: int | None = None
    pin: str | None = None
    python: str | None = None
    native: str | None = None
    """The program's path here."""
    folder: str | None = None
    only: tuple[str, ...] = ()
    any_version: bool | None = None
    timeout: float | None = None

    def request(self, usual: Request) -> Request:
        """How to measure there: as ``usual``, but for what the entry says."""
        names = {item.name for item in fields(Request)} & {item.name for item in fields(self)}
        overrides = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}
        if self.native is not None:
            overrides["native"] = Path(self.native)
        return replace(usual, **overrides)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one device."""

    device: str
    measurement: Measurement | None
    error: str
    """Empty where it was measured."""
    missing: bool = False
    """Whether it lacks a runtime."""


def read(path: Path) -> dict[str, Entry]:
    """The devices of a file. Raises RequestError that names the entry and key that do not fit."""
    try:
        document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is no TOML: {error}") from error
    entries = document.get("devices")
    if set(document) - {"devices"} or not isinstance(entries, Mapping) or not entries:
        raise RequestError(
            f'{path}: wanted tables [devices.NAME] with address = "ssh://…", found {", ".join(document) or "nothing"}'
        )
    entries_by_name = {}
    for name, value in entries.items():
        try:
            entries_by_name[name] = decode(Entry, value, f"devices.{name}")
        except ValueError as error:
            raise RequestError(f"{path}: {error}") from error
    _check_names(path, entries_by_name)
    return entries_by_name


def _check_names(path: Path, entries: Mapping[str, Entry]) -> None:
    """No two devices' results may lie in one folder."""
    slugs: dict[str, str] = {}
    for name in entries:
        other = slugs.setdefault(bench.slug(name), name)
        if other != name:
            raise RequestError(f"{path}: {other!r} and {name!r} have the same name for a folder; rename one")


class _Way:
    """To one device: a link, or a browser."""

    def __init__(self, entry: Entry, request: Request) -> None:
        self.address, self.request = entry.address, request
        self.link = None if entry.address.startswith("web:") else bench.connect(entry.address, request)
        self.host = entry.host or (web.host_of(entry.address) if self.link is None else self.link.host)

    def measure(self, bundle: Bundle, say: Say, name: str) -> Measurement:
        if self.link is None:
            return web.measure(bundle, self.address, self.request, say, name)
        try:
            return bench.measure(bundle, self.link, self.request, say, name)
        finally:
            self.link.close()


def measure(bundle: Bundle, entries: Mapping[str, Entry], usual: Request, jobs: int, say: Say) -> list[Outcome]:
    """Measure on every device, at most ``jobs`` at once and one at a time on each physical machine.

    Raises RequestError, before anything is sent, for an address that is none.
    """
    if jobs < 1:
        raise RequestError(f"--jobs: wanted at least 1, found {jobs}")
    ways = {name: _Way(entry, entry.request(usual)) for name, entry in entries.items()}
    turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
    locks = {name: turns[way.host] for name, way in ways.items()}

    def one(name: str) -> Outcome:
        with locks[name]:
            try:
                result_path = ways[name].measure(bundle, lambda text: say(f"{name}: {text}"), name)
                return Outcome(device=name, measurement=result_path, error="")
            except (EdgewiseError, MissingBackend, OSError) as error:
                say(f"{name}: {error}")
                return Outcome(
                    device=name, measurement=None, error=str(error), missing=isinstance(error, MissingBackend)
                )

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, entries))
