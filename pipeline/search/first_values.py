"""Values that a space is tried with before any are proposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Maker = TypeVar("Maker", bound=Callable[..., object])


def begin_with(**values: Any) -> Callable[[Maker], Maker]:
    """A decorator of a space: the search tries these values first, as of a recipe that is known to be good.

    May be used several times, the topmost is tried first; values that are left out are proposed.
    """

    def add(function: Maker) -> Maker:
        setattr(function, _FIRST, [values, *first_values(function)])
        return function

    return add


def first_values(function: object) -> list[dict[str, Any]]:
    """The values that a space is to be tried with first."""
    return list(getattr(function, _FIRST, ()))


_FIRST = "edgewise_first_values"
