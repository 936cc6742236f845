"""A recipe as Python text: what one can copy, change and run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgewise.public_names import HOMES

if TYPE_CHECKING:
    from edgewise.recipe import Recipe

_WIDTH = 100


def write_recipe_text(recipe: Recipe, function: str, about: str) -> str | None:
    """A file's text whose ``function`` returns ``recipe``; None where a value in it is of a class that is not ours.

    ``about``: the file's docstring. Fields that are as they are by default are left out.
    """
    classes: set[str] = set()
    body = _show(recipe, 1, classes)
    if body is None:
        return None
    names = ", ".join(sorted(classes))
    plain = about.replace("\\", "/").replace('"', "'")
    return f'"""{plain}"""\n\nfrom edgewise import {names}\n\n\ndef {function}() -> Recipe:\n    return {body}\n'


def write_call_text(reference: str, values: Mapping[str, Any], function: str, about: str) -> str:
    """The same for a recipe that only its space can write: the space is called with the values of the trial."""
    path, _, name = reference.rpartition(":")
    plain = about.replace("\\", "/").replace('"', "'")
    return (
        f'"""{plain}\n\nIt holds classes of the space\'s own, so that the space is called with the trial\'s values."""\n\n'
        "from pathlib import Path\n\nfrom optuna.trial import FixedTrial\n\nfrom edgewise import Recipe\n"
        "from edgewise.store.user_code import import_file\n\n\n"
        f"def {function}() -> Recipe:\n"
        f"    space = import_file(Path({path!r}).resolve())\n"
        f"    return space.{name}(FixedTrial({dict(values)!r}))\n"
    )


def _show(value: Any, depth: int, classes: set[str]) -> str | None:
    """The expression that makes a value, broken into lines where it is long; None where it cannot be written."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _show_dataclass(value, depth, classes)
    if isinstance(value, tuple):
        parts = [_show(part, depth + 1, classes) for part in value]
        return _join("(", parts, ")", depth, last="," if len(parts) == 1 else "")
    if isinstance(value, Mapping):
        parts = [_prefixed(f"{key!r}: ", _show(part, depth + 1, classes)) for key, part in value.items()]
        return _join("{", parts, "}", depth)
    return repr(value)


def _show_dataclass(value: Any, depth: int, classes: set[str]) -> str | None:
    kind = type(value)
    if kind.__name__ not in HOMES or kind.__module__.removeprefix("edgewise.") != HOMES[kind.__name__]:
        return None
    classes.add(kind.__name__)
    fields = [field for field in dataclasses.fields(value) if getattr(value, field.name) != _default_of(field)]
    parts = [_prefixed(f"{field.name}=", _show(getattr(value, field.name), depth + 1, classes)) for field in fields]
    return _join(f"{kind.__name__}(", parts, ")", depth)


def _prefixed(start: str, text: str | None) -> str | None:
    return None if text is None else start + text


def _join(start: str, parts: list[str | None], end: str, depth: int, last: str = "") -> str | None:
    shown = [part for part in parts if part is not None]
    if len(shown) < len(parts):
        return None
    line = f"{start}{', '.join(shown)}{last}{end}"
    if "\n" not in line and len(line) + 4 * depth <= _WIDTH:
        return line
    inside, outside = "    " * (depth + 1), "    " * depth
    return f"{start}\n" + "".join(f"{inside}{part},\n" for part in shown) + f"{outside}{end}"


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
