"""``len(x)`` of a tensor while a network is captured for any number of images.

Python's own asks for a number, and so makes a constant of what stays open; ``x.shape[0]`` does not.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def open_lengths(model: nn.Module) -> Iterator[None]:
    """While open, ``len`` in the files that the layers of ``model`` are from leaves the length of a tensor open."""
    spaces = {id(space): space for layer in model.modules() if "len" not in (space := _names_of(layer))}
    for space in spaces.values():
        space["len"] = _length
    try:
        yield
    finally:
        for space in spaces.values():
            del space["len"]


def _names_of(layer: nn.Module) -> dict[str, Any]:
    """What the layer's forward pass finds its names in; nothing for torch's own."""
    space: dict[str, Any] = getattr(inspect.unwrap(type(layer).forward), "__globals__", {})
    return {"len": len} if space.get("__name__", "torch").split(".")[0] == "torch" else space


def _length(value: Sized) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)
