"""Every s-th pixel, written as a convolution.

A shortcut that takes ``x[:, :, ::s, ::s]`` and pads with zero channels is free on paper, but runtimes leave strided
slices to slow generic code and change the memory layout around them. As a 1×1 convolution with weights 0 and 1 and
stride s it is the same function, bit for bit, in float and in integers (weight 1 at scale 1), and stays in the
accelerated graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets._program import export_module

_aten = torch.ops.aten
_QUANTIZE, _DEQUANTIZE = "quantize_per_tensor.default", "dequantize_per_tensor.default"


@dataclass(frozen=True)
class _Subsampling:
    """``last`` is ``source`` at every ``step``-th pixel, between ``before`` and ``after`` channels of zeros."""

    source: Node
    last: Node
    step: int
    before: int = 0
    after: int = 0

    def kernel(self) -> Tensor:
        """The 1×1 kernel: [channels, 1, 1, 1] depthwise without padding, else [channels out, channels in, 1, 1]."""
        channels = self.source.meta["val"].shape[1]
        if not self.before and not self.after:
            return torch.ones(channels, 1, 1, 1)
        kernel = torch.zeros(self.before + channels + self.after, channels, 1, 1)
        kernel[self.before : self.before + channels, :, 0, 0] = torch.eye(channels)
        return kernel


def subsampling_as_convolution(program: ExportedProgram) -> ExportedProgram:
    """``program`` with its spatial subsamplings as convolutions; the program itself where it has none."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    count = 0
    for match in (_padded_subsampling, _bare_subsampling):
        for node in list(module.graph.nodes):
            if node.users and (subsampling := match(node)) is not None:
                _replace_subsampling(module, subsampling, f"_subsampling_{count}")
                count += 1
        module.graph.eliminate_dead_code()
    if not count:
        return program
    module.recompile()
    return export_module(module, program)


def _name(value: object) -> str:
    return str(value.target).removeprefix("quantized_decomposed.") if isinstance(value, Node) else ""


def _before_rounding(value: object) -> Node | None:
    """``value`` before a rounding to the grid on which it already lies."""
    if not isinstance(value, Node):
        return None
    quantize = value.args[0] if _name(value) == _DEQUANTIZE else None
    source = quantize.args[0] if isinstance(quantize, Node) and _name(quantize) == _QUANTIZE else None
    return source if isinstance(source, Node) and source.target in (_aten.slice.Tensor, *_PADS) else value


_PADS = (_aten.pad.default, _aten.constant_pad_nd.default)


def _bare_subsampling(node: Node) -> _Subsampling | None:
    """``x[:, :, ::s, ::s]``, as two slices one after the other."""
    first = _before_rounding(node.args[0]) if node.args else None
    step = _slice_step(node, 3)
    if first is None or step is None or _slice_step(first, 2) != step:
        return None
    source = _before_rounding(first.args[0])
    return None if source is None else _Subsampling(source, node, step)


def _slice_step(node: Node, axis: int) -> int | None:
    """The step of a slice over the whole of ``axis`` of an image, or None."""
    if node.target is not _aten.slice.Tensor or len(node.args) < 5 or node.meta["val"].dim() != 4:
        return None
    _, slice_axis, start, end, step = node.args
    source = node.args[0]
    assert isinstance(source, Node) and isinstance(slice_axis, int) and isinstance(step, int)
    whole = not start and (end is None or cast(int, end) >= source.meta["val"].shape[axis])
    return step if slice_axis % 4 == axis and whole and step > 1 else None


def _padded_subsampling(node: Node) -> _Subsampling | None:
    """A subsampling followed by channels of zeros."""
    inner = _before_rounding(node.args[0]) if node.target in _PADS else None
    source = _bare_subsampling(inner) if inner is not None else None
    if source is None or len(amounts := cast(list[int], node.args[1])) != 6:
        return None
    before, after = amounts[4:]
    filling = [argument for argument in node.args[2:] if argument not in ("constant", None)]
    if any(filling) or any(amounts[:4]) or min(before, after) < 0:
        return None
    return _Subsampling(source.source, node, source.step, before, after)


def _replace_subsampling(module: GraphModule, subsampling: _Subsampling, name: str) -> None:
    source, kernel = subsampling.source, subsampling.kernel()
    graph = module.graph
    groups = len(kernel) if kernel.shape[1] == 1 and not (subsampling.before or subsampling.after) else 1
    with graph.inserting_before(subsampling.last):
        weight = _add_weight(module, name, kernel, quantized=_name(source) == _DEQUANTIZE)
        stride = [subsampling.step, subsampling.step]
        convolution = graph.call_function(_aten.conv2d.default, (source, weight, None, stride, [0, 0], [1, 1], groups))
    convolution.meta = dict(subsampling.last.meta)
    subsampling.last.replace_all_uses_with(convolution)


def _add_weight(module: GraphModule, name: str, kernel: Tensor, quantized: bool) -> Node:
    """The kernel as a buffer of the graph; in a quantized graph as int8 behind a dequantization with scale 1."""
    module.register_buffer(name, kernel.to(torch.int8) if quantized else kernel)
    weight = module.graph.get_attr(name)
    if not quantized:
        return weight
    module.register_buffer(f"{name}_scale", torch.ones(len(kernel)))
    module.register_buffer(f"{name}_zero_point", torch.zeros(len(kernel), dtype=torch.int64))
    scale, zero_point = (module.graph.get_attr(f"{name}_{part}") for part in ("scale", "zero_point"))
    dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return module.graph.call_function(dequantize, (weight, scale, zero_point, 0, -127, 127, torch.int8))
