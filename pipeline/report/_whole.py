"""Text files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from pipeline.errors import StoreError


def write_whole(path: Path, text: str) -> Path:
    """Write ``text`` aside, then move it to ``path``; makes the folder. Raises StoreError and leaves no scrap."""
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        aside = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp's file is for its owner alone; a report is as readable as any file the user writes.
        aside.chmod(0o666 & ~_umask())
        return aside.replace(path)
    except OSError as error:
        if aside is not None:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
