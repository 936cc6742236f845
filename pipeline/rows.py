"""The rows of a report: what was measured on one step or one written file, and the verdict on it.

Every class is a value: its fields are the keys of ``report.json``, in that order. ``to_json`` gives plain JSON types,
``from_json`` takes them back and raises ValueError, naming the place, for a key that is missing or unknown and for a
value of the wrong type. Accuracies are fractions, times milliseconds (``seconds`` excepted), sizes bytes.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from targets import Precision

Grade = Literal["runtime", "reference", "written"]
"""How a file was verified: in its runtime, by a reference evaluation of its instructions, or not at all."""
Verdict = Literal["pass", "fail", "not-checked"]
Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""

T = TypeVar("T")
_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "a string", Mapping: "an object"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference in top-1 from the baseline, on the same images. The baseline's own is 0, (0, 0), p 1."""

    delta: float
    """This row's top-1 minus the baseline's, as a fraction: −0.01 is one point lost."""
    ci95: Interval
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 over the whole test set."""

    top1: float
    n: int
    """Number of test images."""
    ci95: Interval
    vs_baseline: Difference

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one call, measured interleaved with the baseline in one run."""

    on: str
    """The target whose runtime was timed."""
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    ratio_to_baseline: float
    """Time divided by the baseline's time in the same run; below 1 is faster."""
    ci95: Interval
    """Of the ratio."""

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A written file against the PyTorch model it was written from, image by image."""

    top1: float
    """Fraction of test images that both put into the same class."""
    max_abs: float
    """Largest absolute difference between two logits."""
    n: int

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step or one written file. Raises ValueError when a file that was only written claims a pass."""

    step: str
    """``baseline``, a stage's name, or ``artifact``."""
    target: str | None
    params: int
    macs: int
    """Multiply-accumulates for one image."""
    bytes: int | None
    accuracy: Accuracy | None
    """None where nothing could run the file."""
    latency: Latency | None
    verification: Grade | None
    """None for a step, which is a PyTorch model and no file."""
    undelegated: tuple[str, ...]
    """Operators the target's accelerated backend left outside, one entry per occurrence."""
    verdict: Verdict
    reason: str
    seconds: float
    """What the step took, its checks included."""
    name: str = ""
    """A label for people; empty: the step's name."""
    precision: Precision | None = None
    agreement: Agreement | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage tells about its work, or the target about its file; JSON types."""
    load_ms: float | None = None
    peak_bytes: int | None = None
    """By which a fresh process grew when the file was loaded and answered one image; None where no runtime did."""

    def __post_init__(self) -> None:
        if self.verification == "written" and self.verdict == "pass":
            raise ValueError(
                f"{self.step} row for target {self.target!r}: a file that was only written cannot pass; "
                "give the verdict 'not-checked' with its reason, or verify the file"
            )

    @property
    def label(self) -> str:
        """What to call the row on a page: its name, with the target for a file."""
        name = self.name or self.step
        return name if self.target is None or self.target in name else f"{name} {self.target}"

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object, where: str = "row") -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value, where)


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """A written file or package as the report lists it."""

    target: str
    path: str
    """Relative to the report's folder where it lies inside."""
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    @classmethod
    def from_json(cls, value: object, where: str = "artifact") -> Self:
        """The value again. Raises ValueError that names what does not fit."""
        return decode(cls, value, where)


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
    return cast(T, _decode(kind, value, where or kind.__name__.lower()))


def _decode(hint: Any, value: object, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _decode_object(cast(type, hint), value, where)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(p for p in parts if p is not types.NoneType), value, where)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{where}: wanted one of {', '.join(parts)}, found {_shown(value)}")
        return value
    if origin is tuple:
        return _decode_tuple(parts, value, where)
    return _decode_plain(origin or hint, value, where)


def _decode_object(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: wanted an object, found {_shown(value)}")
    known = {item.name: item for item in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known keys: {', '.join(known)}")
    missing = [name for name, item in known.items() if name not in value and _required(item)]
    if missing:
        raise ValueError(f"{where}: missing key {', '.join(map(repr, missing))}; found: {', '.join(map(str, value))}")
    hints = get_type_hints(kind)
    return kind(**{str(key): _decode(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _decode_tuple(parts: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: wanted a list, found {_shown(value)}")
    kinds = parts[:1] * len(value) if parts[-1] is ... else parts
    if len(kinds) != len(value):
        raise ValueError(f"{where}: wanted a list of {len(kinds)}, found {_shown(value)}")
    return tuple(
        _decode(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_plain(kind: type, value: object, where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    # bool is an int to isinstance, and true is no count.
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: wanted {_WORDS.get(kind, kind.__name__)}, found {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: wanted a finite number, found {value}")
    return float(cast(float, value)) if kind is float else value


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
