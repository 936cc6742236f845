"""What a network has to be given before it can be a network as data: shapes for its lazy layers, images of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgewise.errors import RequestError


@dataclass(frozen=True)
class Materialise:
    """Gives lazy layers the shapes that images of ``shape`` (channels, height, width) lead to."""

    shape: tuple[int, int, int] | list[int]

    def __call__(self, model: nn.Module) -> None:
        modes = [(module, module.training) for module in model.modules()]
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            model(torch.zeros(1, *self.shape))
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class CopyInput:
    """Hands a network that writes into its input a copy of the images, so that nobody else's are changed."""

    def __call__(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(_copy_inputs)


def _copy_inputs(module: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in images)


def lazy_layers(model: nn.Module) -> list[str]:
    """The names of the layers whose shapes nobody has told yet."""
    return [
        name
        for name, module in model.named_modules()
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    ]


def still_lazy(model: nn.Module) -> None:
    """Raise RequestError for a layer that one image did not reach."""
    if lazy := lazy_layers(model):
        raise RequestError(
            f"layer {lazy[0]!r} ({type(model.get_submodule(lazy[0])).__name__}) takes its shape from its first input, and "
            "no image reaches it in evaluation; give it its shape where the network is built"
        )


@torch.no_grad()
def changes_its_input(model: nn.Module, images: Tensor) -> bool:
    """Whether ``model``, in the mode that it is in, writes into the images [N, C, H, W] that it is fed."""
    clone = images.clone()
    model(clone)
    return not torch.equal(clone, images)
