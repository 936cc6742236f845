"""Text files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pipeline import store
from pipeline.errors import StoreError


def write_whole(path: Path, text: str) -> Path:
    """Write ``text`` aside, then move it to ``path``; makes the folder. Raises StoreError and leaves no scrap."""
    try:
        store.write_whole(path, text.encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error
    return path
