"""Dataclasses as JSON and back, checked."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_LARGEST = 2**63 - 1
_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "a string", Mapping: "an object"}


def encode(value: Any) -> Any:
    """Dataclasses, mappings and sequences of plain values as JSON types.

    Raises ValueError for a number that is not finite, which JSON cannot hold, and TypeError for any other type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode_fields(value)
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a report holds finite numbers only, found {value}; use None for what was not measured")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a report holds JSON types, found {type(value).__name__}: {value!r:.80}")


def encode_fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields, in order, as one JSON object; raises as ``encode`` does."""
    return {item.name: encode(getattr(value, item.name)) for item in dataclasses.fields(value)}


def decode(kind: type[T], value: object, where: str = "") -> T:
    """``value`` (JSON types) as the dataclass ``kind``; ``where`` names the place in the ValueError's message."""
    return cast(T, _decode_value(kind, value, where or kind.__name__.lower()))


def _decode_value(hint: Any, value: object, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _decode_object(cast(type, hint), value, where)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode_value(next(p for p in parts if p is not types.NoneType), value, where)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{where}: wanted one of {', '.join(parts)}, found {_show_value(value)}")
        return value
    if origin is tuple:
        return _decode_tuple(parts, value, where)
    return _decode_plain(origin or hint, value, where)


def _decode_object(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: wanted an object, found {_show_value(value)}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in value if key not in fields)
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known keys: {', '.join(fields)}")
    missing = [name for name, item in fields.items() if name not in value and _required(item)]
    if missing:
        raise ValueError(f"{where}: missing key {', '.join(map(repr, missing))}; found: {', '.join(map(str, value))}")
    hints = get_type_hints(kind)
    return kind(**{str(key): _decode_value(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _decode_tuple(parts: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: wanted a list, found {_show_value(value)}")
    kinds = parts[:1] * len(value) if parts[-1] is ... else parts
    if len(kinds) != len(value):
        raise ValueError(f"{where}: wanted a list of {len(kinds)}, found {_show_value(value)}")
    return tuple(
        _decode_value(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_plain(kind: type, value: object, where: str) -> Any:
    kinds = (int, float) if kind is float else kind
    # bool is an int to isinstance, and true is no count.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: wanted {_WORDS.get(kind, kind.__name__)}, found {_show_value(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: wanted a finite number, found {value}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{where}: wanted a number of at most 64 bits, found one of {value.bit_length():,}")
    return float(cast(float, value)) if kind is float else value


def _show_value(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
