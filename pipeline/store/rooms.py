"""Where each process fills its results: a folder that it holds locked, so that what a killed one left is known as such."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

_LOCK = ".lock"
_USES = ".uses"
_PARTIAL = "partial"

_held: dict[tuple[Path, int], Path] = {}


def room_of_this_process(root: Path) -> Path:
    """The folder under ``root`` in which this process, alone, fills results; it goes with the process. Raises OSError."""
    key = (root.resolve(), os.getpid())  # a forked child has its parent's memory, and not its room
    if key not in _held or not _held[key].is_dir():
        (root / _PARTIAL).mkdir(parents=True, exist_ok=True)
        # Locked before it has its name: a sweep that sees it sees it locked.
        folder = Path(tempfile.mkdtemp(prefix=f"new-{os.getpid()}-", dir=root))
        handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(handle, _host_name().encode())
        room = root / _PARTIAL / folder.name.removeprefix("new-")
        folder.rename(room)
        _held[key] = room
        atexit.register(_leave_room, room, os.getpid())
    return _held[key]


def _host_name() -> str:
    """This machine among those that share a store."""
    return platform.node() or "unnamed"


def _leave_room(room: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(room, ignore_errors=True)


def sweep(root: Path) -> int:
    """Remove the rooms of processes that are no more; how many there were."""
    nameless = (folder for folder in root.glob("new-*") if _is_older(folder, 60))  # killed at birth
    abandoned = [room for room in (*(root / _PARTIAL).glob("*"), *nameless) if not _is_lived_in(room)]
    for room in abandoned:
        shutil.rmtree(room, ignore_errors=True)
    return len(abandoned)


def _is_older(folder: Path, seconds: float) -> bool:
    with contextlib.suppress(OSError):  # it has its name now
        return time.time() - folder.stat().st_mtime > seconds
    return False


def note_use(root: Path, key: str) -> None:
    """Write down that this process uses an entry, so that none trims it: times alone go wrong where a clock is set back."""
    with contextlib.suppress(OSError):  # a store that is only read, and that nobody trims
        handle = os.open(
            room_of_this_process(root) / _USES, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        try:
            os.write(handle, f"{key}\n".encode())
        finally:
            os.close(handle)


def keys_in_use(root: Path, room_of_ours: Path) -> set[str]:
    """The entries that other processes at work have used."""
    keys: set[str] = set()
    for room in (root / _PARTIAL).glob("*"):
        if room != room_of_ours and _is_lived_in(room):
            with contextlib.suppress(OSError):
                keys.update((room / _USES).read_text(encoding="ascii", errors="replace").split())
    return keys


def oldest_start(root: Path) -> float | None:
    """When the first of the processes that are at work there began, in seconds of the epoch; None where none is."""
    rooms = [room for room in (root / _PARTIAL).glob("*") if _is_lived_in(room)]
    times = []
    for room in rooms:
        with contextlib.suppress(OSError):
            times.append((room / _LOCK).stat().st_mtime)
    return min(times, default=None)


_DAY = 86_400.0
"""Seconds without a sign of life after which another host's room counts as left."""


def _is_lived_in(room: Path) -> bool:
    """Whether a living process holds the room's lock.

    A room of another host is also lived in while it was used within a day: not every network file system passes locks on.
    """
    try:
        handle = os.open(room / _LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # somebody else's, of whom nothing is known
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_elsewhere(handle) and not _is_older(_last_used(room), _DAY)
    except OSError:
        return True
    finally:
        os.close(handle)


def _is_elsewhere(handle: int) -> bool:
    """Whether the room of an open lock is another host's; one that does not say is of this one."""
    host = os.pread(handle, 256, 0).decode("utf-8", "replace")
    return host not in ("", _host_name())


def _last_used(room: Path) -> Path:
    """The file of a room that its process wrote last."""
    return next((path for path in (room / _USES, room / _LOCK) if path.exists()), room)
