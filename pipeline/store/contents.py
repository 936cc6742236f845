"""What a store holds, and its trimming: what was used least recently goes, and nothing that a run at work may use."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.errors import RequestError
from edgewise.store.entries import RECORD, REPAIR, in_use
from edgewise.store.rooms import keys_in_use, oldest_start, room_of_this_process
from edgewise.store.whole import disk_errors

_KEY = re.compile(r"[0-9a-f]{64}")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_AGES = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One entry of a store."""

    key: str
    what: str
    """Its kind, and its stage or target."""
    bytes: int
    seconds: float
    """What it took to compute."""
    used: float
    """When it was last used, in seconds of the epoch."""


def list_entries(root: Path) -> list[Kept]:
    """Every whole entry, the one used last first."""
    entries = [_read_entry(folder) for folder in root.glob("*") if _KEY.fullmatch(folder.name) and folder.is_dir()]
    return sorted((entry for entry in entries if entry), key=lambda entry: -entry.used)


def _read_entry(folder: Path) -> Kept | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        what, seconds = str(record.get("what") or "unknown"), float(record["seconds"])
        return Kept(key=folder.name, what=what, bytes=size, seconds=seconds, used=folder.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # taken away meanwhile, or damaged: the next run removes it


def trim_store(root: Path, keep: int | None, older: float | None, now: float | None = None) -> list[Kept]:
    """Remove entries, and return them: those last used more than ``older`` seconds ago, then the least recently used ones
    until at most ``keep`` bytes are left.

    Entries that were used since the first of the runs at work began stay, whatever is asked. Raises StoreError where the
    disk refuses.
    """
    now = time.time() if now is None else now
    entries = list_entries(root)
    if not entries:
        return []
    with disk_errors(root, REPAIR):
        room = room_of_this_process(root)
        limit = oldest_start(root)
        entries_to_remove = [
            entry for entry in _entries_to_remove(entries, keep, older, now) if limit is None or entry.used < limit
        ]
        return [entry for entry in entries_to_remove if _remove_entry(root, entry, room)]


def _entries_to_remove(entries: Sequence[Kept], keep: int | None, older: float | None, now: float) -> list[Kept]:
    """Those to remove, of ``entries`` from the last used to the first."""
    total, picked = 0, []
    for entry in entries:
        total += entry.bytes
        if (keep is not None and total > keep) or (older is not None and now - entry.used > older):
            total -= entry.bytes
            picked.append(entry)
    return picked


def _remove_entry(root: Path, entry: Kept, room: Path) -> bool:
    """Take an entry away, unless a run has used it since it was listed."""
    with in_use(root, alone=True):
        folder = root / entry.key
        if not folder.is_dir() or folder.stat().st_mtime > entry.used or entry.key in keys_in_use(root, room):
            return False
        aside = Path(tempfile.mkdtemp(dir=room))
        folder.rename(aside / entry.key)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def bytes_of(text: str) -> int:
    """``10GB`` as bytes (powers of ten). Raises RequestError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = match and (match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B")
    if match is None or unit not in _UNITS:
        raise RequestError(f"wanted a size as 500MB or 10GB, found {text!r}")
    return int(float(match[1]) * _UNITS[unit])


def seconds_of(text: str) -> float:
    """``30d`` as seconds; m, h, d and w are minutes, hours, days and weeks. Raises RequestError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip().lower())
    if match is None:
        raise RequestError(f"wanted an age as 12h, 30d or 4w, found {text!r}")
    return float(match[1]) * _AGES[match[2]]
