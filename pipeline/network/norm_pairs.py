"""Which layer each batch norm follows, and whatever else maps channel by channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.network.linear_map import Unlike, channel_map_of
from edgewise.network.plain_layers import is_plain
from edgewise.network.torch_calls import Watched

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Where a network's batch norms stand."""

    pairs: Mapping[str, str]
    """Convolution or linear layer -> the batch norm that alone reads its output, in order of execution."""
    rest: Mapping[str, str]
    """Every other batch norm -> why it cannot be folded."""
    maps: Mapping[str, str] = field(default_factory=dict)
    """As ``pairs``, for what is no batch norm and maps each channel by a factor and a term (a frozen norm, a scale)."""


def find_norms(model: nn.Module, images: Tensor) -> Norms:
    """Every batch norm of ``model``, found by running it on normalised ``images`` [N, C, H, W] in evaluation."""
    modules = dict(model.named_modules())
    norms = {name: module for name, module in modules.items() if _may_map(module)}
    trace = _trace_norms(model, modules, norms, images)
    pairs: dict[str, str] = {}
    maps: dict[str, str] = {}
    rest: dict[str, str] = {}
    for name, module in norms.items():
        layer, why = _partner(name, module, trace)
        if layer is not None:
            (pairs if isinstance(module, _NORMS) else maps)[layer] = name
        elif isinstance(module, _NORMS):
            rest[name] = why
    order = list(trace.outputs)
    return Norms(
        pairs=dict(sorted(pairs.items(), key=lambda pair: order.index(pair[0]))),
        rest=rest,
        maps=dict(sorted(maps.items(), key=lambda pair: order.index(pair[0]))),
    )


def _may_map(module: nn.Module) -> bool:
    """Whether it is a batch norm, or holds tensors and no layers, and so may map channel by channel."""
    if isinstance(module, _NORMS):
        return True
    holds = any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))
    return holds and type(module) not in _LAYERS and not any(True for _ in module.children())


class _Reads(Watched):
    """Counts how many operations read each tensor, and keeps the tensors alive so that their ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.alive: list[Tensor] = []
        self.within = 0
        """How many calls deep inside a norm, which counts as one operation."""

    def after(self, given: Any, result: Any) -> None:
        if not self.within and any(True for _ in _tensors_in(result)):  # asking for a shape or a device reads no values
            self.add(given)

    def add(self, value: Any) -> None:
        """Count every tensor in ``value`` as read once."""
        for tensor in _tensors_in(value):
            self.alive.append(tensor)
            self.count[id(tensor)] += 1


@dataclass(frozen=True)
class _Trace:
    outputs: Mapping[str, Tensor]
    """Layer -> what it returned, in order of execution."""
    inputs: Mapping[str, Tensor]
    """Batch norm -> what it was given."""
    calls: Mapping[str, int]
    reads: Mapping[int, int]


def _trace_norms(
    model: nn.Module, modules: Mapping[str, nn.Module], norms: Mapping[str, nn.Module], images: Tensor
) -> _Trace:
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    reads = _Reads()

    def leave_layer(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            outputs[name] = output

        return hook

    def enter_norm(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] += 1
            reads.add(args)
            reads.within += 1
            if args and isinstance(args[0], Tensor):
                inputs[name] = args[0]

        return hook

    def leave_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        reads.within -= 1

    layers = {name: module for name, module in modules.items() if is_plain(module)}
    hooks = [module.register_forward_hook(leave_layer(name)) for name, module in layers.items()]
    hooks += [module.register_forward_pre_hook(enter_norm(name)) for name, module in norms.items()]
    hooks += [module.register_forward_hook(leave_norm) for module in norms.values()]
    modes = {name: module.training for name, module in modules.items()}
    try:
        model.eval()
        with torch.no_grad(), reads:
            result = model(images.clone())
        reads.add(result)
    finally:
        for hook in hooks:
            hook.remove()
        for name, training in modes.items():
            modules[name].training = training
    return _Trace(outputs, inputs, calls, reads.count)


def _partner(name: str, norm: nn.Module, trace: _Trace) -> tuple[str | None, str]:
    """The layer that ``norm``, called ``name``, can be folded into, or None and the reason."""
    if trace.calls.get(name, 0) != 1:
        return None, f"it runs {trace.calls.get(name, 0)} times in one pass"
    if isinstance(norm, _NORMS) and norm.running_mean is None:
        return None, "it keeps no running statistics"
    layer = next((layer for layer, output in trace.outputs.items() if output is trace.inputs.get(name)), None)
    if layer is None:
        return None, "it does not follow a convolution or a linear layer"
    output = trace.outputs[layer]
    if trace.calls[layer] != 1:
        return None, f"{layer} before it runs {trace.calls[layer]} times in one pass"
    if trace.reads[id(output)] != 1:
        return None, f"the output of {layer} before it is read elsewhere too"
    if isinstance(norm, nn.BatchNorm1d) and output.dim() != 2:
        return None, f"it normalises the positions, not the channels, of {layer} before it"
    try:
        channel_map_of(norm, output.clone())
    except Unlike as unlike:
        return None, f"it computes {unlike} as well"
    return layer, ""


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation, float64 [C] each."""
    assert isinstance(norm, _NORMS) and norm.running_mean is not None and norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
