"""Which order in memory a network can be trained in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Size, nn
from torch.fx import GraphModule, Node

_CALLED = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
_BLOCK = 8


def fitting_order(device: torch.device, shape: tuple[int, ...], *networks: nn.Module) -> torch.memory_format:
    """Channels-last, in which processors and GPUs convolve faster, where all ``networks`` can train and run in it on images
    [N, *shape]; else channels-first."""
    fits = all(trains_channels_last(net, device) and stands_channels_last(net, shape) for net in networks)
    return torch.channels_last if fits else torch.contiguous_format


def order_memory(model: nn.Module, order: torch.memory_format) -> nn.Module:
    """The network with its weights in that order in memory, changed in place."""
    return model.to(memory_format=order)  # type: ignore[call-overload, no-any-return]


def trains_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether ``model`` can be trained in channels-last memory on ``device``.

    On a CPU with AVX2, torch 2.13.0 (oneDNN's kernel jit_1x1:avx2) writes past a buffer in the weight gradient of an
    ungrouped 1 x 1 convolution with a stride and 2 to 6 input channels, and the process dies; in channels-first memory
    it does not. Every such convolution of fewer than 8 input channels counts here, on any CPU.
    """
    return device.type != "cpu" or not any(
        shape[2:] == (1, 1) and shape[1] < _BLOCK and max(stride) > 1 and groups == 1
        for shape, stride, groups in _convolution_shapes(model)
    )


def stands_channels_last(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether ``model`` runs with weights and images [2, *shape] in channels-last memory.

    A ``view`` behind a feature map wants its values in the order channels, rows, columns and fails on any other.
    """
    own = copy.deepcopy(model).cpu()
    for module in own.modules():
        module.training = False  # a captured graph forbids eval()
    try:
        with torch.no_grad():
            own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            own(torch.zeros(2, *shape).contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def _convolution_shapes(model: nn.Module) -> Iterator[tuple[Size, Sequence[int], int]]:
    """Weight's shape, stride and groups of every two-dimensional convolution, whether a module or called in a graph."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            yield module.weight.shape, module.stride, module.groups
        elif isinstance(module, GraphModule):
            yield from (_call_shape(module, node) for node in module.graph.nodes if node.target in _CALLED)


def _call_shape(graph: GraphModule, node: Node) -> tuple[Size, Sequence[int], int]:
    """The same of one call, whose weight may have come through fake quantization, or have been made from the image."""
    arguments: Any = dict(
        zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False)
    )
    source = arguments["weight"]
    while source.op == "call_module":
        source = source.args[0]
    weight = attrgetter(str(source.target))(graph) if source.op == "get_attr" else source.meta["val"]
    return weight.shape, arguments.get("stride", [1]), arguments.get("groups", 1)
