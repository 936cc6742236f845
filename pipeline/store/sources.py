"""Digests of the source code that a result depends on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Container
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("pipeline", "models", "targets", "calib_data")


def source_digest(path: Path, *, within: Path | None = None, leave_out: Container[str] = ()) -> str:
    """SHA-256 over a source file and, through its imports, every file of this project that it uses.

    Of the imported ones, only those under ``within`` (None: the project), and none whose name without suffix, or folder,
    is among ``leave_out``.
    """
    start, inside = path.resolve(), (within or _ROOT).resolve()
    seen: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        current = waiting.pop()
        if current not in seen and (current == start or _counts(current, inside, leave_out)):
            text = current.read_text(encoding="utf-8")
            seen[current] = hashlib.sha256(text.encode()).hexdigest()
            waiting += _imported(text, current)
    return hashlib.sha256(" ".join(sorted(seen.values())).encode()).hexdigest()


def _counts(path: Path, within: Path, leave_out: Container[str]) -> bool:
    return path.is_relative_to(within) and not any(
        name in leave_out for name in (path.stem, *path.relative_to(within).parts)
    )


def _imported(text: str, path: Path) -> list[Path]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [found for name in names if name.split(".")[0] in _PACKAGES for found in _files_of(name)]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The dotted module that an import statement in the file at ``path`` reads from, relative ones included."""
    if not node.level or not path.is_relative_to(_ROOT):
        return node.module or ""
    package = path.relative_to(_ROOT).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _files_of(name: str) -> list[Path]:
    stem = _ROOT.joinpath(*name.split("."))
    return [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
