"""Convolutions of many narrow groups, in int8, as convolutions of fewer and wider ones.

Integer kernels compute the outputs of a group 16 at a time, or 8. One of a group's own few outputs leaves most of that empty, and
what every group costs besides is paid for each: with 32 groups of 4 channels (ResNeXt) int8 takes longer than float, with two
outputs for each input channel eleven times as long (LOG.md). Several groups side by side, with weights of 0 between them,
are the same function, bit for bit, for 0 is among the integers; a depthwise convolution has kernels of its own, and stays.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets._plain_operators import CONVOLUTION, read_arguments
from edgewise.targets._program import export_module
from edgewise.targets._rounded import read_attribute

_LEAST = 16
"""Outputs of a group that fill a kernel: of XNNPACK's and MLAS's on AVX-512 and AMX; on Arm they are 8 or 16."""

_aten = torch.ops.aten
_CONVOLUTIONS = frozenset({_aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding})


def merge_narrow_groups(program: ExportedProgram) -> ExportedProgram:
    """``program`` with the groups of its int8 convolutions wide enough; the program itself where they are."""
    if not any(_find_factor(node) for node in program.graph.nodes):
        return program
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    merged = [_merge_groups(module, node) for node in list(module.graph.nodes) if _find_factor(node)]
    if not any(merged):
        return program
    module.graph.eliminate_dead_code()
    module.recompile()
    return export_module(module, program)


def _find_factor(node: Node) -> int:
    """How many groups of ``node`` become one; 0: it stays."""
    if node.target not in _CONVOLUTIONS:
        return 0
    _, weight, *_, groups = read_arguments(node, *CONVOLUTION)
    outputs, depth = weight.meta["val"].shape[:2]
    if ".dequantize_per" not in str(weight.target) or not groups or groups == 1:
        return 0
    wide, is_depthwise = outputs // groups, depth == 1 and outputs == groups
    if wide >= _LEAST or is_depthwise:
        return 0
    return next((factor for factor in range(2, groups) if groups % factor == 0 and factor * wide >= _LEAST), groups)


def _merge_groups(module: GraphModule, node: Node) -> bool:
    """Whether it was possible: only where the weights' integers are known, and 0 is 0."""
    factor = _find_factor(node)
    x, weight, bias, stride, padding, dilation, groups = read_arguments(node, *CONVOLUTION)
    integers, scale, zero_point, *grid = weight.args
    if integers.op != "get_attr" or _read_zero_point(module, zero_point) != 0:
        return False
    name = f"_grouped_{node.name}"
    module.register_buffer(name, _lay_side_by_side(read_attribute(module, integers), groups, factor))
    with module.graph.inserting_before(node):
        wide = module.graph.get_attr(name)
        node_weight = module.graph.call_function(weight.target, (wide, scale, zero_point, *grid), dict(weight.kwargs))
    node.args = (x, node_weight, bias, stride or 1, 0 if padding is None else padding, dilation or 1, groups // factor)
    node.kwargs = {}
    return True


def _read_zero_point(module: GraphModule, zero_point: Any) -> int:
    """The largest size of what the integers are centred on, one for all or one a channel."""
    value = read_attribute(module, zero_point) if isinstance(zero_point, Node) else torch.tensor(zero_point)
    return int(cast(Tensor, value).abs().max())


def _lay_side_by_side(weight: Tensor, groups: int, factor: int) -> Tensor:
    """[outputs, depth, ...] of ``groups`` as [outputs, factor * depth, ...] of a ``factor``-th of them, 0 elsewhere."""
    outputs, depth, *kernel = weight.shape
    wide = weight.new_zeros(groups // factor, factor, outputs // groups, factor, depth, *kernel)
    parts = weight.view(groups // factor, factor, outputs // groups, depth, *kernel)
    for place in range(factor):
        wide[:, place, :, place] = parts[:, place]
    return wide.view(outputs, factor * depth, *kernel)
