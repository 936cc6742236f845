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


def check_fields(kind: type[T]) -> type[T]:
    """Make the dataclass ``kind`` raise RequestError, when one is made, that tells every field which does not fit.

    A misspelt field is told with the nearest one and the list of all. To be put over ``@dataclass(kw_only=True)``.
    """
    make: Any = kind.__init__

    @functools.wraps(make)
    def checked_init(self: Any, *positional: Any, **given: Any) -> None:
        if positional:
            raise RequestError(
                f"{kind.__name__} takes its fields by name ({_list_fields(kind)}), found {positional[0]!r:.60}"
            )
        make(self, **_fit_fields(kind, given))

    kind.__init__ = checked_init  # type: ignore[method-assign]
    return kind


class CheckedElsewhere:
    """In ``Annotated[Stage, CheckedElsewhere()]``: anything is taken here, since ``__post_init__`` says more of it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic asks for."""
        from pydantic_core import core_schema

        return core_schema.any_schema()


def check(value: Any) -> None:
    """Check every field of a dataclass value that is not ``check_fields`` where it is made. Raises RequestError."""
    _fit_fields(type(value), {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})


def _fit_fields(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields ``values`` as their annotations want them: a whole number for a float is one. Raises RequestError."""
    _refuse_names(kind, values)
    fields: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in values.items():
        if name in _init_only_fields(kind):
            fields[name] = value
            continue
        try:
            fields[name] = _adapters(cast(Hashable, kind))[name].validate_python(value)
        except _validation_error() as error:
            wrong += [_field_sentence(kind, name, detail) for detail in error.errors(include_url=False)]
    if wrong:
        raise RequestError("; ".join(dict.fromkeys(wrong)))
    return fields


def _refuse_names(kind: type[Any], values: Mapping[str, Any]) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields and name not in _init_only_fields(kind):
            raise RequestError(
                f"{kind.__name__} has no field {name!r}.{name_nearest(name, fields)} It has: {_list_fields(kind)}"
            )
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise RequestError(f"{kind.__name__} wants {', '.join(missing)}, found {', '.join(values) or 'nothing'}")


def _init_only_fields(kind: type[Any]) -> set[str]:
    """What ``__post_init__`` alone is given (``InitVar``), and says more of than a type does."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return {name for name in kind.__dataclass_fields__ if name not in fields}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _list_fields(kind: type[Any]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))


@functools.cache
def _adapters(kind: Hashable) -> dict[str, TypeAdapter[Any]]:
    """Field -> what checks its values."""
    return {field.name: _make_adapter(_hints(kind)[field.name]) for field in dataclasses.fields(cast(Any, kind))}


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    """Every field's type; what its module imports for types alone, and a field names, is imported now."""
    module = sys.modules[cast(Any, kind).__module__]
    own, later = _named(cast(Any, kind)), dict[str, Any]()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            body = [
                item for item in node.body if not isinstance(item, (ast.Import, ast.ImportFrom)) or own & _bound(item)
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


def _make_adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, InstanceOf, TypeAdapter

    if dataclasses.is_dataclass(hint):  # one that was checked when it was made; a dictionary of its fields was not
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


@functools.cache
def _validation_error() -> type[Any]:
    from pydantic import ValidationError

    return ValidationError


def _field_sentence(kind: type[Any], name: str, error: ErrorDetails) -> str:
    """What one field is to be, and what it is."""
    place = f"{kind.__name__}.{name}" + "".join(f"[{part}]" for part in error["loc"] if isinstance(part, int))
    value = error["input"]
    bounds = _bounds(_hints(cast(Hashable, kind))[name]) if error["type"] in _BOUNDS else None
    if bounds is not None:
        return f"{place} must lie in {bounds}, found {value!s:.60}"
    expectation = (
        error["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("integer", "whole number")
    )
    return f"{place}: wanted {expectation}, found {type(value).__name__} {value!r:.60}{_near_choice(error)}"


def _near_choice(error: ErrorDetails) -> str:
    """The choice that a misspelt one is closest to."""
    value, choices_text = error["input"], error.get("ctx", {}).get("expected")
    if error["type"] != "literal_error" or not isinstance(value, str) or not isinstance(choices_text, str):
        return ""
    choices = [word.strip("'") for word in choices_text.replace(" or ", ", ").split(", ")]
    near = name_nearest(value, choices)
    return f".{near}" if near else ""


def _bounds(hint: Any) -> str | None:
    """``0 … 1, 0 excluded``: the range in an annotation, wherever it stands."""
    for part in _hint_parts(hint):
        if isinstance(part, Interval):
            low, high = part.ge if part.gt is None else part.gt, part.le if part.lt is None else part.lt
            outside = [f"{end:g}" for end in (part.gt, part.lt) if isinstance(end, (int, float))]
            return f"{low:g} … {high:g}" + (f", {' and '.join(outside)} excluded" if outside else "")
    return None


def _hint_parts(hint: Any) -> list[Any]:
    """An annotation's parts, and theirs."""
    inner = (*getattr(hint, "__metadata__", ()), *getattr(hint, "__args__", ()), getattr(hint, "__origin__", None))
    return [
        hint,
        *(section for part in inner if part is not None and part is not hint for section in _hint_parts(part)),
    ]
