"""Settings: frozen dataclasses whose every field is checked when a value is made, from its annotation.

A field's type says what it is, ``Literal`` its choices, ``Annotated[int, Interval(ge=1, le=9)]`` its range (annotated-types);
pydantic checks them, strictly: no text for a number, no bool for a count, nothing that is not finite. What concerns several
fields stays in ``__post_init__``, which then meets fields of the right type.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from annotated_types import Interval

from edgewise.errors import RequestError, name_nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails


T = TypeVar("T")

_BOUNDS = frozenset({"finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal"})


def checked(kind: type[T]) -> type[T]:
    """Make the dataclass ``kind`` raise RequestError, when one is made, that tells every field which does not fit.

    A misspelt field is told with the nearest one and the list of all. To be put over ``@dataclass(kw_only=True)``.
    """
    make: Any = kind.__init__

    @functools.wraps(make)
    def checked_init(self: Any, *positional: Any, **given: Any) -> None:
        if positional:
            raise RequestError(
                f"{kind.__name__} takes its fields by name ({_listed(kind)}), found {positional[0]!r:.60}"
            )
        make(self, **_fitting(kind, given))

    kind.__init__ = checked_init  # type: ignore[method-assign]
    return kind


class CheckedElsewhere:
    """In ``Annotated[Stage, CheckedElsewhere()]``: anything is taken here, since ``__post_init__`` says more of it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic asks for."""
        from pydantic_core import core_schema

        return core_schema.any_schema()


def check(value: Any) -> None:
    """Check every field of a dataclass value that is not ``checked`` where it is made. Raises RequestError."""
    _fitting(type(value), {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})


def _fitting(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields ``given`` as their annotations want them: a whole number for a float is one. Raises RequestError."""
    _refuse_names(kind, given)
    fields: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name in _passing(kind):
            fields[name] = value
            continue
        try:
            fields[name] = _adapters(cast(Hashable, kind))[name].validate_python(value)
        except _invalid() as error:
            wrong += [_sentence(kind, name, found) for found in error.errors(include_url=False)]
    if wrong:
        raise RequestError("; ".join(dict.fromkeys(wrong)))
    return fields


def _refuse_names(kind: type[Any], given: Mapping[str, Any]) -> None:
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in known and name not in _passing(kind):
            raise RequestError(
                f"{kind.__name__} has no field {name!r}.{name_nearest(name, known)} It has: {_listed(kind)}"
            )
    missing = [name for name, field in known.items() if name not in given and _required(field)]
    if missing:
        raise RequestError(f"{kind.__name__} wants {', '.join(missing)}, found {', '.join(given) or 'nothing'}")


def _passing(kind: type[Any]) -> set[str]:
    """What ``__post_init__`` alone is given (``InitVar``), and says more of than a type does."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return {name for name in kind.__dataclass_fields__ if name not in fields}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _listed(kind: type[Any]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))


@functools.cache
def _adapters(kind: Hashable) -> dict[str, TypeAdapter[Any]]:
    """Field -> what checks its values."""
    return {field.name: _adapter(_hints(kind)[field.name]) for field in dataclasses.fields(cast(Any, kind))}


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    """Every field's type; what its module imports for types alone, and a field names, is imported now."""
    module = sys.modules[cast(Any, kind).__module__]
    named, later = _named(cast(Any, kind)), dict[str, Any]()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            body = [
                item for item in node.body if not isinstance(item, (ast.Import, ast.ImportFrom)) or named & _bound(item)
            ]
            exec(compile(ast.Module(body=body, type_ignores=[]), str(module.__file__), "exec"), later)
    return get_type_hints(
        cast(Any, kind), globalns=later | vars(module), localns=dict(vars(cast(Any, kind))), include_extras=True
    )


def _named(kind: type[Any]) -> set[str]:
    """The names in a class's annotations, and in those of the classes that it derives from."""
    texts = [str(text) for each in kind.__mro__ for text in vars(each).get("__annotations__", {}).values()]
    nodes = (node for text in texts for node in ast.walk(ast.parse(text)))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _bound(item: ast.Import | ast.ImportFrom) -> set[str]:
    """The names that an import binds."""
    return {alias.asname or alias.name.partition(".")[0] for alias in item.names}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, InstanceOf, TypeAdapter

    if dataclasses.is_dataclass(hint):  # one that was checked when it was made; a dictionary of its fields was not
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


@functools.cache
def _invalid() -> type[Any]:
    from pydantic import ValidationError

    return ValidationError


def _sentence(kind: type[Any], name: str, found: ErrorDetails) -> str:
    """What one field is to be, and what it is."""
    place = f"{kind.__name__}.{name}" + "".join(f"[{part}]" for part in found["loc"] if isinstance(part, int))
    value = found["input"]
    bounds = _bounds(_hints(cast(Hashable, kind))[name]) if found["type"] in _BOUNDS else None
    if bounds is not None:
        return f"{place} must lie in {bounds}, found {value!s:.60}"
    wanted = (
        found["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("integer", "whole number")
    )
    return f"{place}: wanted {wanted}, found {type(value).__name__} {value!r:.60}{_near_choice(found)}"


def _near_choice(found: ErrorDetails) -> str:
    """The choice that a misspelt one is closest to."""
    value, expected = found["input"], found.get("ctx", {}).get("expected")
    if found["type"] != "literal_error" or not isinstance(value, str) or not isinstance(expected, str):
        return ""
    choices = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    near = name_nearest(value, choices)
    return f".{near}" if near else ""


def _bounds(hint: Any) -> str | None:
    """``0 … 1, 0 excluded``: the range in an annotation, wherever it stands."""
    for part in _parts(hint):
        if isinstance(part, Interval):
            low, high = part.ge if part.gt is None else part.gt, part.le if part.lt is None else part.lt
            outside = [f"{end:g}" for end in (part.gt, part.lt) if isinstance(end, (int, float))]
            return f"{low:g} … {high:g}" + (f", {' and '.join(outside)} excluded" if outside else "")
    return None


def _parts(hint: Any) -> list[Any]:
    """An annotation's parts, and theirs."""
    inner = (*getattr(hint, "__metadata__", ()), *getattr(hint, "__args__", ()), getattr(hint, "__origin__", None))
    return [hint, *(found for part in inner if part is not None and part is not hint for found in _parts(part))]
