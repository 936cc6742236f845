"""One executable file: a zip that Python runs, the same bytes for the same contents."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edgewise.errors import StoreError
from edgewise.store.whole import write_whole

_RUNNER = Path(__file__).parent / "runner"
_PACKAGE = "edgewise_runner"
_MAIN = f"from {_PACKAGE}.main import main\n\nif __name__ == '__main__':\n    raise SystemExit(main())\n"
_WHEN = (1980, 1, 1, 0, 0, 0)


def pack(entries: Mapping[str, bytes]) -> bytes:
    """The zip's bytes: the runner and ``entries``, sorted, without times of their own, not compressed.

    The first line lets a shell start it. Python finds a zip behind whatever stands before it.
    """
    whole = {**_runner_files(), **entries}
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(whole):
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, whole[name])
    return buffer.getvalue()


def write(path: Path, content: bytes) -> str:
    """Write a bundle whole or not at all; returns its SHA-256. Raises StoreError where the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error
    return hashlib.sha256(content).hexdigest()


def digests(entries: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of every entry, the runner's own among them."""
    return {
        name: hashlib.sha256(content).hexdigest() for name, content in sorted({**_runner_files(), **entries}.items())
    }


def _runner_files() -> dict[str, bytes]:
    sources = {f"{_PACKAGE}/{path.name}": path.read_bytes() for path in sorted(_RUNNER.glob("*.py"))}
    return {"__main__.py": _MAIN.encode(), **sources}
