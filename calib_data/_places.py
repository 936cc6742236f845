"""The folder or file that a reader was pointed at."""

from __future__ import annotations

from pathlib import Path

from edgewise.calib_data import DataError


def check_folder(reader: str, path: str) -> Path:
    """The folder ``path``; raises DataError if it was left out, is missing, or is a file."""
    if not path:
        raise DataError(f"{reader} wants a folder, found none in the request; write {reader}:DIR")
    place = Path(path).expanduser()
    if not place.is_dir():
        state = "a file" if place.exists() else "nothing"
        raise DataError(f"{place}: {reader} wants a folder here, found {state}; correct the path in {reader}:DIR")
    return place


def check_file(reader: str, path: str, suffix: str) -> Path:
    """The file ``path`` with ``suffix``; raises DataError if it was left out, is missing, or is of another kind."""
    if not path:
        raise DataError(f"{reader} wants a file, found none in the request; write {reader}:FILE{suffix}")
    place = Path(path).expanduser()
    if not place.is_file():
        state = "a folder" if place.is_dir() else "nothing"
        raise DataError(f"{place}: {reader} wants a file here, found {state}; correct the path")
    if place.suffix != suffix:
        raise DataError(f"{place}: {reader} wants a {suffix} file, found {place.suffix or 'no suffix'}; convert it")
    return place
