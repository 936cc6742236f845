"""The step store: every finished result under a key made of all that determines it.

An entry is a folder. It is filled beside its place, each file's digest is written into ``entry.json``, everything is
flushed to disk, and the folder is renamed: a name that exists is a whole entry. A killed run leaves at most a nameless
folder (swept away by the next run) and the step's scratch folder, from which long training goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.store import kin, uses
from edgewise.store.rooms import note_use, room_of_this_process, sweep
from edgewise.store.whole import disk_errors

REPAIR = "name another folder for kept results with EDGEWISE_STORE"
RECORD = "entry.json"


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    path: Path
    seconds: float
    """How long it took when it was computed."""
    fresh: bool
    """Whether this call computed it."""


class Key(str):
    """64 hexadecimal digits that stand for all that determines a result, which it remembers."""

    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """A folder of entries."""

    root: Path

    def keep(
        self,
        key: str,
        make: Callable[[Path, Path], None],
        seconds: float | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Entry:
        """The entry under ``key``; where there is none, ``make(folder, scratch)`` fills one.

        ``scratch`` belongs to the key and survives a kill. One process at a time works on a key; others wait and take
        its result. ``seconds``: what the result took, where most of it was done before this call; ``note`` is told why a
        result of other circumstances is not taken. Raises StoreError when the disk does not take it.
        """
        with disk_errors(self.root, REPAIR):
            (self.root / "scratch").mkdir(parents=True, exist_ok=True)
            room_of_this_process(self.root)
        with disk_errors(self.root, REPAIR, any_kind=False), _locked_file(self.root / "scratch" / f"{key}.lock"):
            entry = self.find(key)
            if entry is None:
                if note is not None and (why := kin.difference(self.root, key)):
                    note(f"not reused: {why}")
                entry = self._fill(key, make, seconds)
            # Also of one that was killed between keeping its result and removing what it worked in.
            shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)
            return entry

    def find(self, key: str) -> Entry | None:
        """The whole entry under ``key``, or None. A damaged one (a file changed or missing) is removed, as if never kept."""
        path = self.root / key
        with in_use(self.root):
            if not path.is_dir():
                return None
            with contextlib.suppress(OSError):  # a store that is only read
                os.utime(path)
            note_use(self.root, key)
            record = _intact_record(path)
            if record is not None:
                uses.note_reused(key, float(record["seconds"]))
                return Entry(path, float(record["seconds"]), fresh=False)
        with disk_errors(self.root, REPAIR):
            shutil.rmtree(path)
        return None

    def _fill(self, key: str, make: Callable[[Path, Path], None], seconds: float | None) -> Entry:
        scratch = self.root / "scratch" / key
        scratch.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=key[:12], dir=room_of_this_process(self.root)))
        partial.chmod(0o777 & ~_read_umask())
        start = time.perf_counter()
        try:
            make(partial, scratch)
            seconds = time.perf_counter() - start if seconds is None else seconds
            _seal_entry(partial, seconds, kin.name_of(key))
            if not _take_name(partial, self.root / key) and (entry := self.find(key)) is not None:
                return entry
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        uses.note_computed(key, seconds)
        note_use(self.root, key)
        _flush_to_disk(self.root)
        kin.remember(self.root, key)
        return Entry(self.root / key, seconds, fresh=True)

    def aside(self, key: str) -> Path:
        """An empty folder, on the store's disk, for work on ``key`` that another process does."""
        with disk_errors(self.root, REPAIR):
            folder = room_of_this_process(self.root) / f"{key[:24]}-aside"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def sweep(self) -> int:
        """Remove what killed processes left half-filled, and what they worked in for a result that is kept; how many had left
        something half-filled."""
        for folder in (self.root / "scratch").glob("*"):
            if folder.is_dir() and (self.root / folder.name).is_dir():
                with contextlib.suppress(OSError), _locked_file(folder.with_name(f"{folder.name}.lock"), wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
        return sweep(self.root)


def key_of(**parts: Any) -> Key:
    """A key (64 hexadecimal digits) from JSON-serialisable parts; equal exactly when all parts are."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = Key(hashlib.sha256(text.encode()).hexdigest())
    key.parts = parts
    return key


def store_folder() -> Path:
    """Where results are kept: ``EDGEWISE_STORE``, else ``runs/store``."""
    return Path(os.environ.get("EDGEWISE_STORE") or "runs/store")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative paths and files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(p for p in path.rglob("*") if p.is_file())
    return key_of(**{p.relative_to(path).as_posix(): file_digest(p) for p in names})


def _take_name(partial: Path, place: Path) -> bool:
    """Give a filled entry its name; False where another host gave it to its own first, since not every network file system
    passes locks on from host to host."""
    try:
        partial.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _seal_entry(folder: Path, seconds: float, name: str) -> None:
    files = {p.relative_to(folder).as_posix(): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    record = {"files": files, "seconds": seconds, "what": name}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    mask = _read_umask()
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():  # some writers keep theirs to their user, whatever the umask says
            path.chmod(0o666 & ~mask)
        _flush_to_disk(path)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _intact_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        whole = all(file_digest(folder / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


@contextlib.contextmanager
def _locked_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError where another process holds it and this one does not ``wait``."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def in_use(root: Path, *, alone: bool = False) -> Iterator[None]:
    """While an entry is looked up, or ``alone`` while one is taken away: nobody finds what is just going."""
    try:
        handle = os.open(root / "trim.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # no store yet, or one that is only read, which nobody trims either
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
