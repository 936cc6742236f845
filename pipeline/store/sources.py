"""Digests of the source code that a result depends on."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgewise.store import user_code

_PROJECT = "edgewise"
_LEAVES = ("models", "targets", "calib_data")


def _find_folders() -> dict[str, Path]:
    """Import name -> folder: in a checkout the leaves lie beside the package, in an installed wheel inside of it."""
    top = Path(__file__).resolve().parents[1]
    leaves = {leaf: inside if (inside := top / leaf).is_dir() else top.parent / leaf for leaf in _LEAVES}
    return {_PROJECT: top} | {f"{_PROJECT}.{leaf}": folder.resolve() for leaf, folder in leaves.items()}


_FOLDERS = _find_folders()


def code_of(*parts: ModuleType | type | Callable[..., Any]) -> list[str]:
    """For each module, class or function, ``source_digest`` of the file that defines it."""
    return [source_digest(Path(inspect.getfile(inspect.unwrap(part) if callable(part) else part))) for part in parts]


def source_digest(path: Path, *, within: Path | None = None, leave_out: Container[str] = ()) -> str:
    """SHA-256 over a source file and, through its imports, every file of this project, and of the user's own, that it uses.

    Of the project's, only those under ``within`` (None: the project), and none whose name without suffix, or folder,
    is among ``leave_out``.
    """
    start = path.resolve()
    inside = tuple(_FOLDERS.values()) if within is None else (within.resolve(),)
    digests: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        current = waiting.pop()
        if current not in digests and (
            current == start or _package_of(current) is None or _is_counted(current, inside, leave_out)
        ):
            digests[current], imports = _read_source(current, current.stat().st_mtime_ns)
            waiting += imports
            if _package_of(current) is None and user_code.is_the_users(current):
                waiting += (file for file in user_code.imported_files(current) if _package_of(file) is None)
    return hashlib.sha256(" ".join(sorted(digests.values())).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _read_source(path: Path, changed: int) -> tuple[str, tuple[Path, ...]]:
    """A source file's digest and the project's files that it imports; ``changed``: when it last was, for the cache's key.

    A run asks for the same few hundred files more than a hundred times, and taking one apart is what costs.
    """
    text = path.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest(), tuple(_imported_files(text, path))


def project_files() -> list[Path]:
    """Every file of this project, code and what lies beside it, in order."""
    folders = [folder for folder in _FOLDERS.values() if folder.is_dir()]
    files = {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}
    return sorted(path for path in files if path.is_file())


def is_ours(path: Path) -> bool:
    """Whether a file of code belongs to this project, and not to the user or to a library."""
    return _package_of(path) is not None


def _is_counted(path: Path, within: Iterable[Path], leave_out: Container[str]) -> bool:
    return any(
        path.is_relative_to(folder)
        and not any(name in leave_out for name in (path.stem, *path.relative_to(folder).parts))
        for folder in within
    )


def _imported_files(text: str, path: Path) -> list[Path]:
    files: list[Path] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            files += [file for alias in node.names for file in _files_of(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute_module(node, path)
            for alias in node.names:
                # A package from which only a module of its own is taken adds nothing to what that module does.
                files += _files_of(f"{module}.{alias.name}") or _files_of(module)
    return files


def _absolute_module(node: ast.ImportFrom, path: Path) -> str:
    """The dotted module that an import statement in the file at ``path`` reads from, relative ones included."""
    package = _package_of(path)
    if not node.level or package is None:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _package_of(path: Path) -> str | None:
    """The dotted package that the file at ``path`` belongs to; None for a file that is not the project's."""
    for name, folder in _FOLDERS.items():
        if path.is_relative_to(folder):
            return ".".join((name, *path.relative_to(folder).parts[:-1]))
    return None


def _files_of(name: str) -> list[Path]:
    """The file of a dotted module of the project; none for the face itself, which hands names on and computes nothing."""
    top = max((n for n in _FOLDERS if name == n or name.startswith(f"{n}.")), key=len, default=None)
    if top is None or name == _PROJECT:
        return []
    stem = _FOLDERS[top].joinpath(*name.removeprefix(top).split(".")[1:])
    return [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
