"""What a written file consists of on disk: itself, the files of its folder, and weights kept in a file beside it."""

from __future__ import annotations

from pathlib import Path

from edgewise.store.entries import file_digest, key_of

_WEIGHTS = ".data"
"""Appended to the name of an ONNX file whose weights are too large for it."""


def roots(artifact: Path) -> tuple[Path, ...]:
    """The file or folder, and the weights' file beside it where there is one: what has to be copied together."""
    beside = artifact.with_name(artifact.name + _WEIGHTS)
    return (artifact, beside) if beside.is_file() else (artifact,)


def digest(artifact: Path) -> str:
    """SHA-256 over everything the artifact consists of; a single file's own where it is one."""
    files = roots(artifact)
    return file_digest(artifact) if len(files) == 1 else key_of(**{path.name: file_digest(path) for path in files})


def size(artifact: Path) -> int:
    """Bytes of everything the artifact consists of."""
    files = (p for root in roots(artifact) for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file())
    return sum(path.stat().st_size for path in files)


def is_artifact(path: Path) -> bool:
    """Whether a path can be a written file: a regular file, or a folder with a name; no pipe, no device."""
    return path.name not in ("", "..") and (path.is_file() or path.is_dir())
