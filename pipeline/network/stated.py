"""What a user's network file says of the images it was trained with, checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgewise.calib_data import read_classes
from edgewise.errors import RequestError

NAMES = ("mean", "std", "input_shape", "resize", "interpolation", "classes")
DEFAULT = (0.5,)
"""Mean and deviation that nobody stated."""


def read_stated(module: object, path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The fields of a spec that the constants of a user's module state, and for each where.

    mean, std (a number, or one a channel), input_shape (channels, height, width), resize (pixels), interpolation (a
    filter of Pillow) and classes (names, or the name of a file that lists them, beside the network's). Raises RequestError
    for a value that means nothing.
    """
    values = {name: getattr(module, name, None) for name in NAMES}
    # A function or a module of such a name (``def resize``, ``from statistics import mean``) states nothing.
    constants = {k: v for k, v in values.items() if v is not None and not callable(v) and not isinstance(v, ModuleType)}
    statement: dict[str, Any] = {"mean": DEFAULT, "std": DEFAULT, "input_shape": (3, 224, 224)}
    for name, value in constants.items():
        where = f"{name} in {path.name}"
        if name in ("mean", "std"):
            statement[name] = per_channel_numbers(value, where, above_zero=name == "std")
        elif name == "input_shape":
            statement[name] = _shape(value, where)
        elif name == "classes":
            statement[name] = _classes(value, path, where)
        else:
            statement[name] = _check_plain(name, value, where)
    return statement, dict.fromkeys(constants, path.name)


def per_channel_numbers(value: Any, where: str, *, above_zero: bool) -> tuple[float, ...]:
    """A mean or a deviation, one number or one a channel. Raises RequestError for what cannot be one."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    try:
        numbers = tuple(float(entry) for entry in values)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where}: numbers are wanted, one a channel, found {value!r}") from error
    if not numbers or not all(map(math.isfinite, numbers)) or (above_zero and min(numbers) <= 0):
        expectation = "numbers above 0" if above_zero else "finite numbers"
        raise RequestError(f"{where}: {expectation} are wanted, one a channel, found {value!r}")
    if max(numbers) > _LARGEST:
        fractions = ", ".join(f"{number / 255:.4g}" for number in numbers)
        raise RequestError(f"{where}: units of 0 to 1 are wanted, found {value!r}; in those it would be {fractions}")
    return numbers


_LARGEST = 4.0
"""Deviations of 1 and a little more occur; 127.5 is one of bytes."""


def _shape(value: Any, where: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(side) for side in value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where}: (channels, height, width) is wanted, found {value!r}") from error
    if min(channels, height, width) < 1:
        raise RequestError(f"{where}: sides of at least 1 are wanted, found {value!r}")
    return channels, height, width


def _classes(value: Any, path: Path, where: str) -> tuple[str, ...]:
    if isinstance(value, (str, Path)):
        return read_classes(path.parent / value)
    if isinstance(value, Sequence) and len(value) > 1:
        return tuple(map(str, value))
    raise RequestError(f"{where}: names of at least two classes are wanted, or a file that lists them, found {value!r}")


def _check_plain(name: str, value: Any, where: str) -> int | str:
    if name == "resize" and isinstance(value, int) and value > 0:
        return value
    if name == "interpolation" and isinstance(value, str) and value:
        return value.lower()
    expectation = "a number of pixels" if name == "resize" else "the name of a filter, such as bicubic,"
    raise RequestError(f"{where}: {expectation} is wanted, found {value!r}")
