"""The user's own files of code: imported with their folder, and followed to every file of his that they import."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from edgewise.errors import RequestError

_OURS = Path(__file__).resolve().parents[2]


def import_file(path: Path) -> ModuleType:
    """The module that a file defines, once a process; while it loads, the files beside it can be imported.

    Raises RequestError where it cannot be imported, with the reason.
    """
    return _import_as(f"{_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}", path)


_PREFIX = "edgewise_user_"


def loaded_files() -> dict[str, str]:
    """Module's name -> the user's file it was imported from, of all that this process has imported."""
    modules = [(name, module.__file__) for name, module in sys.modules.items() if name.startswith(_PREFIX)]
    return {name: file for name, file in modules if file}


def load_again(files: Mapping[str, str]) -> None:
    """Import in this process what ``loaded_files`` told of another, so that objects of those modules can arrive here."""
    for name, file in files.items():
        _import_as(name, Path(file))


def _import_as(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(f"{path} is no file of Python code")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with importable(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(f"{path} could not be imported: {_cause(error, path)}") from error
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """While open, modules of ``folder`` can be imported, before any of the same name elsewhere."""
    _forget_namesakes(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def imported_files(path: Path) -> list[Path]:
    """The user's files that the code in the user's file ``path`` imports, wherever in it: at the top, in a function, under
    a condition. Those of the standard library and of the environment's site-packages are not the user's."""
    files: list[Path] = []
    for name in imported_names(path.read_text(encoding="utf-8"), _package_of(path)):
        files += _user_files(name, [str(_top_of(path)), *sys.path])
    return [file for file in dict.fromkeys(files) if file.resolve() != path.resolve()]


def imported_names(text: str, package: str) -> list[str]:
    """The dotted names of all that a file's text imports; ``package``: the one the file belongs to, for relative ones."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.append(node.args[0].value)
    return [name.strip(".") for name in names if name.strip(".")]


def _cause(error: Exception, path: Path) -> str:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        return f"{message}. Install it, or put it beside {path.name} in {path.parent}"
    return message


def _forget_namesakes(folder: Path) -> None:
    """A module of another user's folder must not answer to the name of one in this folder."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        here = (folder / f"{name}.py", folder / name / "__init__.py") if "." not in name else ()
        namesakes = [place for place in here if place.is_file() and place.resolve() != Path(file or "").resolve()]
        if file and namesakes and is_the_users(Path(file)) and not Path(file).is_relative_to(_OURS):
            for other in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
                del sys.modules[other]


def _top_of(path: Path) -> Path:
    """The folder from which the file at ``path`` is imported: above its outermost package."""
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _package_of(path: Path) -> str:
    return ".".join(path.resolve().parent.relative_to(_top_of(path)).parts)


def _user_files(name: str, places: Sequence[str]) -> list[Path]:
    """The user's files behind a dotted name: the module's own, and the packages' around it."""
    files: list[Path] = []
    parts = name.split(".")
    where: Sequence[str] | None = places
    for count in range(1, len(parts) + 1):
        spec = _find_spec(".".join(parts[:count]), where, top=count == 1)
        if spec is None:
            break
        if spec.origin and spec.origin.endswith(".py") and is_the_users(Path(spec.origin)):
            files.append(Path(spec.origin).resolve())
        where = spec.submodule_search_locations
        if where is None:
            break
    return files


def _find_spec(name: str, where: Sequence[str] | None, *, top: bool) -> ModuleSpec | None:
    """Where a module lies, without importing it; an editable install's is known to its own finder alone."""
    spec = PathFinder.find_spec(name, None if where is None else list(where))
    if spec is not None or not top:
        return spec
    for finder in sys.meta_path:
        if finder is not PathFinder and (foreign_spec := finder.find_spec(name, None)) is not None:
            return foreign_spec
    return None


def is_the_users(path: Path) -> bool:
    """Whether a file of code lies outside the environment: neither the standard library's nor an installed package's."""
    return not any(path.resolve().is_relative_to(place) for place in _environment_paths())


@cache
def _environment_paths() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    places = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(place).resolve() for place in (*places, *site.getsitepackages(), site.getusersitepackages()))
