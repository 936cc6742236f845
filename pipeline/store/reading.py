"""Files that somebody else may have written: read whole, within bounds, and no pipe or device among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_JSON = 64_000_000


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises ValueError for another kind of file or a larger one.

    A pipe would be waited for and a device read without end; what was written beside a file is neither.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no regular file")
    if size > most:
        raise ValueError(f"it has {size:,} bytes, more than the {most:,} that one can have")
    return path.read_bytes()


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """The JSON document in a regular file. Raises OSError, and ValueError for any damage, however deep it is nested."""
    try:
        return json.loads(read_regular(path, most).decode())
    except RecursionError as error:
        raise ValueError("it is nested too deep to be a document of this project") from error
