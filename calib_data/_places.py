"""The folder or file that a reader was pointed at."""

from __future__ import annotations

from pathlib import Path

from edgewise.calib_data import DataError


def folder(reader: str, path: str) -> Path:
    """The folder ``path``; raises DataError if it was left out, is missing, or is a file."""
    if not path:
        raise DataError(f"{reader} wants a folder, found none in the request; write {reader}:DIR")
    found = Path(path).expanduser()
    if not found.is_dir():
        state = "a file" if found.exists() else "nothing"
        raise DataError(f"{found}: {reader} wants a folder here, found {state}; correct the path in {reader}:DIR")
    return found


def file(reader: str, path: str, suffix: str) -> Path:
    """The file ``path`` with ``suffix``; raises DataError if it was left out, is missing, or is of another kind."""
    if not path:
        raise DataError(f"{reader} wants a file, found none in the request; write {reader}:FILE{suffix}")
    found = Path(path).expanduser()
    if not found.is_file():
        state = "a folder" if found.is_dir() else "nothing"
        raise DataError(f"{found}: {reader} wants a file here, found {state}; correct the path")
    if found.suffix != suffix:
        raise DataError(f"{found}: {reader} wants a {suffix} file, found {found.suffix or 'no suffix'}; convert it")
    return found
