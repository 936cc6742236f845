"""Files and folders that appear whole or not at all, wherever the disk is full, and leave no scrap."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgewise.errors import StoreError

PARTIAL = ".partial"
"""Ends the name of what is being written; what is left of a killed process is swept away by the next."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file so that it appears whole or not at all, also through a power cut. Raises StoreError.

    Of a path that is not UTF-8 text holds the bytes as escapes, which JSON reads.
    """
    with replace_whole(path) as aside:
        aside.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def replace_whole(place: Path) -> Iterator[Path]:
    """Where to make, within the block, the file or folder that in the end takes the place of what is there.

    The folder around it is made. Raises StoreError, and takes the scrap away, where the disk does not take it.
    """
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{place.name[:40]}.{os.getpid()}.", suffix=PARTIAL, dir=place.parent))
        try:
            yield (aside := room / place.name)
            flush_all(aside)
            remove(place) if place.is_dir() else None
            aside.replace(place)
        finally:
            shutil.rmtree(room, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Take away, from a folder and those in it, what processes that are no more were writing."""
    for partial in folder.rglob(f".*{PARTIAL}"):
        process = partial.name.removesuffix(PARTIAL).split(".")[-2]
        if not (process.isdecimal() and _is_alive(int(process))):
            shutil.rmtree(partial, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # no number that a process can have
        return False
    except OSError:  # somebody else's
        return True
    return True


def copy_whole(source: Path, place: Path) -> None:
    """Copy a file or folder, whole or not at all, in place of what is there, with the modes of new files."""
    with replace_whole(place) as aside:
        if source.is_dir():
            shutil.copytree(source, aside, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, aside)


def remove(path: Path) -> None:
    """Take a file or folder away, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_all(path: Path) -> None:
    """Bring a file, or a folder with all in it, to the disk."""
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk_errors(
    place: Path, repair: str = "choose another folder with --out", *, any_kind: bool = True
) -> Iterator[None]:
    """Raise StoreError, saying what to do, where the disk does not take what is written at ``place``.

    ``any_kind`` False: where it is full or read-only; whatever else goes wrong in there may have another cause.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            repair = "free some space and run the same command again; every finished step is kept"
        elif not any_kind and error.errno != errno.EROFS:
            raise
        raise StoreError(f"cannot write {place}: {error.strerror or error}; {repair}") from error
