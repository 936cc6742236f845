"""In which precision, and in which order in memory, a network can be trained: each is tried on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Size, Tensor, nn
from torch.fx import GraphModule, Node

from edgewise.errors import RequestError, first_line
from edgewise.stages.training.grouped_gradients import float_gradients
from edgewise.stages.training.settings import ComputePrecision, resolve_precision

if TYPE_CHECKING:
    from lightning_fabric.plugins import Precision

_CALLED = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
_BLOCK = 8


def fitting_precision(
    precision: ComputePrecision,
    device: str,
    shape: tuple[int, ...],
    *networks: nn.Module,
    note: Callable[[str], None] = lambda text: None,
) -> ComputePrecision:
    """What ``precision`` stands for on ``device``; for ``auto`` float32 where one of ``networks`` cannot train in mixed
    precision on images [N, *shape], of which ``note`` is told.

    ``torch.autocast`` gives some operations bfloat16 and leaves others, and what is written to take both alike may not.
    Raises RequestError where mixed precision was asked for by name and a network cannot.
    """
    resolved = resolve_precision(precision, device)
    error = next(filter(None, (_mixed_error(net, resolved, device, shape) for net in networks)), None)
    if error is None:
        return resolved
    if precision == "auto":
        note(f"computed in float32, for {resolved} ends in {error}")
        return "32-true"
    raise RequestError(
        f"precision {precision!r} was asked for, in which the network ends in {error}; take 'auto' or '32-true', or convert "
        "what meets there to one type"
    )


def _mixed_error(network: nn.Module, precision: ComputePrecision, device: str, shape: tuple[int, ...]) -> str | None:
    """What a step of ``network`` in a mixed precision fails with; two images, for norms want more than one value."""
    if precision == "32-true":
        return None
    own = copy.deepcopy(network).to(device)
    if not isinstance(own, GraphModule):  # a captured graph has the behaviour that it was captured with
        own.train()
    try:
        with torch.random.fork_rng(devices=[]), autocast(precision, device):
            answers = own(torch.zeros(2, *shape, device=device))
        main = answers[0] if isinstance(answers, (tuple, list)) else answers
        if isinstance(main, Tensor) and main.requires_grad:
            torch.autograd.backward(main.float().sum())
    except Exception as error:  # the user's code may raise anything; where float32 does, too, training says so
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@contextmanager
def autocast(precision: ComputePrecision, device: str) -> Iterator[None]:
    """What computes a network in that precision on a device, beside Fabric's own loop."""
    kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(resolve_precision(precision, device))
    if kind is None:
        yield
        return
    with torch.autocast(device, kind), float_gradients(precision, device):
        yield


def make_precision(precision: ComputePrecision, device: str) -> Precision:
    """Fabric's plugin for a precision, which gives a network its images as they are.

    Fabric's own rounds them to bfloat16 first. ``torch.autocast`` does not, and networks written for it count on that: what
    they compute outside of it is float32's.
    """
    from lightning_fabric.plugins import MixedPrecision, Precision

    resolved = resolve_precision(precision, device)
    if resolved == "32-true":
        return Precision()
    plugin = MixedPrecision(resolved, device)
    plugin.convert_input = _leave_images
    return plugin


def _leave_images(data: Any) -> Any:
    return data


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
    except Exception:  # the user's code may raise anything
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
