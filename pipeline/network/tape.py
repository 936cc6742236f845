"""A module as the operators that it ran: its layers plain ones of their own, everything else called as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import StageError

ENTRY = "x"
"""The name of what a tape is given, among its values."""


class Tape(nn.Module):
    """Runs recorded steps in order: a layer of its own, or one of torch's ATen operators by name."""

    def __init__(self, steps: Sequence[Mapping[str, Any]], returns: str) -> None:
        super().__init__()
        self.steps = [dict(step) for step in steps]
        self.returns = returns

    def forward(self, x: Tensor) -> Tensor:
        """What the recorded module answered to [N, …]."""
        values: dict[str, Any] = {ENTRY: x}
        for step in self.steps:
            arguments = [self._decoded(value, values) for value in step["args"]]
            if "layer" in step:
                result = getattr(self, step["layer"])(*arguments)
            else:
                keywords = {key: self._decoded(value, values) for key, value in step["kwargs"].items()}
                result = _find_operator(step["op"])(*arguments, **keywords)
            names = step["to"]
            values.update({names: result} if isinstance(names, str) else dict(zip(names, result, strict=True)))
        answer: Tensor = values[self.returns]
        return answer

    def _decoded(self, value: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(value, list):
            return [self._decoded(item, values) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "value":
            return values[content]
        if kind == "tensor":
            return getattr(self, content)
        if kind == "batch":
            return values[ENTRY].shape[0]
        if kind == "device":
            return values[ENTRY].device
        return getattr(torch, content)


def _find_operator(name: str) -> Callable[..., Any]:
    space, operator, overload = name.split(".")
    if space != "aten":
        raise StageError(f"a tape calls torch's own operators alone, found {name}")
    function: Callable[..., Any] = getattr(getattr(torch.ops.aten, operator), overload)
    return function


def placeholder(description: Mapping[str, Any]) -> Tensor:
    """The tensor, of no value yet, that a tape's description stands for; a parameter where it is trained."""
    blank = torch.zeros(description["shape"], dtype=getattr(torch, description["dtype"]))
    return nn.Parameter(blank) if description["trained"] else blank
