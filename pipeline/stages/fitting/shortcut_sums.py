"""Where a layer's answers are added to another branch of the network, such as a shortcut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.network.torch_calls import Watched
from edgewise.stages.fitting.layer_io import Enough, capture_values, listen_to_layers, run_until_seen

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


def find_sums(model: nn.Module, ends: Mapping[str, str], images: Tensor) -> dict[str, Sum]:
    """For each layer whose answers are added to a branch that was there before it ran, that addition.

    ``ends``: layer -> the module whose output stands for its answers (the batch norm behind it, or itself). Of two
    branches that are both computed the later one is named, so that one of them alone makes up for what the sum lacks.
    """
    history = _History()
    layers = {end: layer for layer, end in ends.items()}
    starts = [model.get_submodule(layer).register_forward_pre_hook(history.start(layer)) for layer in ends]
    try:
        with (
            torch.no_grad(),
            listen_to_layers(model, layers, lambda end, _, output: history.ended(layers[end], output)),
            history,
        ):
            model(images)
    finally:
        for handle in starts:
            handle.remove()
    return history.found


def capture_meeting(model: nn.Module, layer: str, where: Sum | None, images: Tensor) -> Meeting:
    """What ``layer`` was given and answered for ``images``; the network is run no further than needed."""
    if where is None:
        return Meeting(*run_until_seen(model, [layer], images)[layer], None)
    until = _Until(where)
    with (
        torch.no_grad(),
        suppress(Enough),
        capture_values(model, [layer], "input") as inputs,
        capture_values(model, [layer], "output") as outputs,
        until,
    ):
        model(images)
    return Meeting(inputs[layer], outputs[layer], until.other)


class _Additions(Watched):
    """Hears of every addition of two tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0

    def before(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        if getattr(func, "__name__", "") in _ADDITIONS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            self.adding(self._number, *tensors)
            self._number += 1

    def adding(self, number: int, *operands: Tensor) -> None:
        """Both operands of an addition that is about to run; ``number`` counts from 0."""


class _Until(_Additions):
    """Ends the pass at one addition, and keeps its other branch."""

    def __init__(self, where: Sum) -> None:
        super().__init__()
        self._where = where
        self.other: Tensor | None = None

    def adding(self, number: int, *operands: Tensor) -> None:
        if number == self._where.call:
            self.other = operands[self._where.other]
            raise Enough


class _History(_Additions):
    """When each tensor came to be, and which layer it is the answer of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Sum] = {}
        self._now = 0
        self._born: dict[int, int] = {}
        self._started: dict[str, int] = {}
        self._source: dict[int, str] = {}
        self._alive: list[Any] = []  # so that ids stay theirs

    def start(self, layer: str) -> Callable[[nn.Module, Any], None]:
        """The hook for what happens before ``layer`` runs."""

        def hook(module: nn.Module, args: Any) -> None:
            self._started[layer] = self._now

        return hook

    def ended(self, layer: str, output: Any) -> None:
        """``output`` is what ``layer`` answered."""
        self._alive.append(output)
        self._source[id(output)] = layer

    def after(self, given: Any, result: Any) -> None:
        self._now += 1
        self._alive.append(result)
        self._born[id(result)] = self._now
        self._source.pop(id(result), None)  # changed in place, it is no longer what the layer answered

    def adding(self, number: int, *operands: Tensor) -> None:
        for place, mine in enumerate(operands):
            layer, other = self._source.get(id(mine)), 1 - place
            if layer is not None and self._born.get(id(operands[other]), 0) <= self._started[layer]:
                self.found.setdefault(layer, Sum(number, other))
