"""Files that somebody else may have written: read whole, within bounds, and no pipe or device among them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_JSON = 64_000_000


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened. Raises OSError, and ValueError for another kind of file.

    A pipe would be waited for and a device read without end; what was written beside a file is neither. It is asked of the
    file that was opened, so that none can be put in its place between the question and the reading.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no regular file")
        with open(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises as ``open_regular``, and for a larger one."""
    with open_regular(path) as file:
        content = file.read(most + 1)
        if len(content) > most:
            size = os.fstat(file.fileno()).st_size
            raise ValueError(f"it has {size:,} bytes, more than the {most:,} that one can have")
        return content


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """The JSON document in a regular file. Raises OSError, and ValueError for any damage; see ``parse_json``."""
    return parse_json(read_regular(path, most))


def parse_json(content: bytes) -> Any:
    """The JSON document in UTF-8. Raises ValueError for any damage, however deep it is nested, for numbers that are not
    finite, which JSON does not have, and for a key that stands twice: readers differ in which of the two they take."""
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_refuse_repeated_keys,
            parse_constant=_read_number,
            parse_float=_read_number,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep to be a document of this project") from error


def _refuse_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} stands in it twice")
    return document


def _read_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"wanted finite numbers, found {text:.40}")
    return number
