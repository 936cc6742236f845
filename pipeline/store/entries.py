"""The step store: every finished result under a key made of all that determines it.

An entry is a folder. It is filled beside its place, each file's digest is written into ``entry.json``, everything is
flushed to disk, and the folder is renamed: a name that exists is a whole entry. A killed run leaves at most a nameless
folder (swept away by the next run) and the step's scratch folder, from which long training goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import StoreError

_RECORD = "entry.json"


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    path: Path
    seconds: float
    """How long it took when it was computed."""
    fresh: bool
    """Whether this call computed it."""


@dataclass(frozen=True)
class Store:
    """A folder of entries."""

    root: Path

    def keep(self, key: str, make: Callable[[Path, Path], None], seconds: float | None = None) -> Entry:
        """The entry under ``key``; where there is none, ``make(folder, scratch)`` fills one.

        ``scratch`` belongs to the key and survives a kill. One process at a time works on a key; others wait and take
        its result. ``seconds``: what the result took, where most of it was done before this call. Raises StoreError
        when the disk does not take it.
        """
        for folder in (self.root / "scratch", self.root / "partial"):
            _make_folder(folder)
        with _lock(self.root / "scratch" / f"{key}.lock"):
            found = self.find(key)
            if found is not None:
                return found
            with _disk_errors(self.root):
                return self._fill(key, make, seconds)

    def find(self, key: str) -> Entry | None:
        """The whole entry under ``key``, or None. A damaged one (a file changed or missing) is removed, as if never kept."""
        path = self.root / key
        if not path.is_dir():
            return None
        record = _intact(path)
        if record is None:
            shutil.rmtree(path)
            return None
        return Entry(path, float(record["seconds"]), fresh=False)

    def _fill(self, key: str, make: Callable[[Path, Path], None], seconds: float | None) -> Entry:
        scratch = self.root / "scratch" / key
        scratch.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=key[:12], dir=self.root / "partial"))
        started = time.perf_counter()
        try:
            make(partial, scratch)
            seconds = time.perf_counter() - started if seconds is None else seconds
            _seal(partial, seconds)
            partial.rename(self.root / key)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _flush(self.root)
        shutil.rmtree(scratch, ignore_errors=True)
        return Entry(self.root / key, seconds, fresh=True)

    def aside(self, key: str) -> Path:
        """An empty folder, on the store's disk, for work on ``key`` that another process does."""
        folder = self.root / "partial" / f"{key[:24]}-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        _make_folder(folder)
        return folder

    def sweep(self) -> None:
        """Remove what killed runs left half-filled, if it is older than a day (a run beside this one may be at work)."""
        for left in (self.root / "partial").glob("*"):
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)


def key_of(**parts: Any) -> str:
    """A key (64 hexadecimal digits) from JSON-serialisable parts; equal exactly when all parts are."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative paths and files."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    names = sorted(p for p in path.rglob("*") if p.is_file())
    return key_of(**{p.relative_to(path).as_posix(): file_digest(p) for p in names})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, also through a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is for its owner alone; a result is as readable as any file the user writes.
        Path(aside).chmod(0o666 & ~_umask())
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}; choose another with --out") from error


def _seal(folder: Path, seconds: float) -> None:
    files = {p.relative_to(folder).as_posix(): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    record = {"files": files, "seconds": seconds}
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _intact(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        whole = all(file_digest(folder / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise StoreError(
            f"{root} could not take a result: {error.strerror}. Free some space and run the same command again; "
            "every finished step is kept."
        ) from error
