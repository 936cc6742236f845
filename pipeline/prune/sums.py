"""Where a layer's answers are added to another branch of the network, such as a shortcut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True)
class Sum:
    """An addition of two tensors of one shape."""

    call: int
    """Its number among all of one pass, from 0."""
    other: int
    """Which operand is the other branch, 0 or 1."""


@dataclass(frozen=True)
class Meeting:
    """What a layer was given and answered, and the other branch its answers were added to."""

    given: Tensor
    answered: Tensor
    other: Tensor | None


class _Enough(Exception):
    """All that was asked for has been seen."""


class _Additions(TorchFunctionMode):
    """Calls ``at(number, a, b)`` before every addition, and ``after(result)`` after every function."""

    def __init__(self, at: Callable[[int, Tensor, Tensor], None], after: Callable[[Any], None]) -> None:
        super().__init__()
        self._at, self._after, self._number = at, after, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        if getattr(func, "__name__", "") in _ADDITIONS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            self._at(self._number, tensors[0], tensors[1])
            self._number += 1
        result = func(*args, **(kwargs or {}))
        self._after(result)
        return result


def find_sums(model: nn.Module, ends: Mapping[str, str], images: Tensor) -> dict[str, Sum]:
    """For each layer whose answers are added to a branch that was there before it ran, that addition.

    ``ends``: layer -> the module whose output stands for its answers (the batch norm behind it, or itself). Of two
    branches that are both computed the later one is named, so that one of them alone makes up for what the sum lacks.
    """
    now = 0
    born: dict[int, int] = {}
    started: dict[str, int] = {}
    source: dict[int, str] = {}
    alive: list[Any] = []  # so that ids stay theirs
    found: dict[str, Sum] = {}

    def after(result: Any) -> None:
        nonlocal now
        now += 1
        alive.append(result)
        born[id(result)] = now
        source.pop(id(result), None)  # changed in place, it is no longer what the layer answered

    def at(number: int, *operands: Tensor) -> None:
        for place, mine in enumerate(operands):
            layer, other = source.get(id(mine)), 1 - place
            if layer is not None and born.get(id(operands[other]), 0) <= started[layer]:
                found.setdefault(layer, Sum(number, other))

    def start(layer: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            started[layer] = now

        return hook

    def end(layer: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            alive.append(output)
            source[id(output)] = layer

        return hook

    hooks = [model.get_submodule(layer).register_forward_pre_hook(start(layer)) for layer in ends]
    hooks += [model.get_submodule(stands).register_forward_hook(end(layer)) for layer, stands in ends.items()]
    try:
        with torch.no_grad(), _Additions(at, after):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def meet(model: nn.Module, layer: str, where: Sum | None, images: Tensor) -> Meeting:
    """What ``layer`` was given and answered for ``images``; the network is run no further than needed."""
    seen: list[Tensor] = []
    other: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[:] = args[0], output
        if where is None:
            raise _Enough

    def at(number: int, *operands: Tensor) -> None:
        if where is not None and number == where.call:
            other.append(operands[where.other])
            raise _Enough

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        with torch.no_grad(), _Additions(at, lambda _: None):
            model(images)
    except _Enough:
        pass
    finally:
        handle.remove()
    return Meeting(seen[0], seen[1], other[0] if other else None)
