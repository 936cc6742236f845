"""A quantized program rewritten so that every operator of it stands between integers, as Ethos-U executes it.

Nothing here changes what the program computes, but for the rounding of biases, which every integer runtime does when it
loads a file. What ExecuTorch's Arm backend is then given is marked as its own quantizer would have marked it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets._rounded import read_attribute

_aten = torch.ops.aten
_QUANTIZE = "quantize_per_tensor.default"
_DEQUANTIZE = "dequantize_per_tensor.default"
_DEQUANTIZE_CHANNELS = "dequantize_per_channel.default"
_ROUNDINGS = frozenset({_QUANTIZE, _DEQUANTIZE, _DEQUANTIZE_CHANNELS})
_WEIGHTED = frozenset({_aten.conv1d.default, _aten.conv2d.default, _aten.linear.default})
_CLIPS = frozenset(
    {
        _aten.relu.default, _aten.relu_.default, _aten.relu6.default, _aten.relu6_.default, _aten.hardtanh.default,
        _aten.hardtanh_.default, _aten.clamp.default, _aten.clamp_.default,
    }
)  # fmt: skip
_LARGEST = 2**31 - 1


def as_integers(program: ExportedProgram) -> ExportedProgram:
    """``program`` with what its quantization left in float between two integer operators moved onto their grids."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    for node in list(module.graph.nodes):
        if node.target in _WEIGHTED:
            _round_bias(module, node)
        elif node.target in _CLIPS:
            _round_before_clip(module, node)
        elif node.target is _aten.mean.dim:
            _pool_mean(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return torch.export.export(module, cast(tuple[Any, ...], program.example_inputs[0]))


def _name(value: object) -> str:
    return str(value.target).removeprefix("quantized_decomposed.") if isinstance(value, Node) else ""


def _round_bias(module: GraphModule, node: Node) -> None:
    """A float bias becomes int32 on the accumulator's grid, scale of the input times scale of the weight.

    Jacob et al. 2018, arXiv 1712.05877, section 2.4.
    """
    source, weight, bias = (*node.args, None)[:3]
    if _name(source) != _DEQUANTIZE or _name(weight) != _DEQUANTIZE_CHANNELS or not isinstance(bias, Node):
        return
    assert isinstance(source, Node) and isinstance(weight, Node)
    scale = cast(float, source.args[1]) * read_attribute(module, weight.args[1]).double()
    rounded = torch.round(read_attribute(module, bias).double() / scale).clamp(-_LARGEST, _LARGEST).to(torch.int32)
    parts = {"": rounded, "_scale": scale.float(), "_zero_point": torch.zeros(len(rounded), dtype=torch.int64)}
    dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
    with module.graph.inserting_before(node):
        constants = [_hold_constant(module, f"_bias_of_{node.name}{ending}", value) for ending, value in parts.items()]
        bias_node = module.graph.call_function(dequantize, (*constants, 0, -_LARGEST, _LARGEST, torch.int32))
    node.replace_input_with(bias, bias_node)


def _hold_constant(module: GraphModule, name: str, value: Tensor) -> Node:
    module.register_buffer(name, value)
    return module.graph.get_attr(name)


def _round_before_clip(module: GraphModule, node: Node) -> None:
    """A sum and the clip behind it share one rounding; each gets its own, on the same grid, which changes no number."""
    source, rounding = node.args[0], next(iter(node.users))
    assert isinstance(source, Node)
    if source.target not in _WEIGHTED and _name(source) not in _ROUNDINGS and _name(rounding) == _QUANTIZE:
        _round_behind(module, source, rounding, node)


def _round_behind(module: GraphModule, source: Node, rounding: Node, reader: Node) -> None:
    quantized = torch.ops.quantized_decomposed
    with module.graph.inserting_before(reader):
        rounded = module.graph.call_function(quantized.quantize_per_tensor.default, (source, *rounding.args[1:]))
        read = module.graph.call_function(quantized.dequantize_per_tensor.default, (rounded, *rounding.args[1:]))
    reader.replace_input_with(source, read)


def _pool_mean(module: GraphModule, node: Node) -> None:
    """A mean over the whole image is an average pooling, which the hardware has."""
    source, axes, *rest = node.args
    assert isinstance(source, Node)
    if _name(source) != _DEQUANTIZE or sorted(axis % 4 for axis in cast(list[int], axes)) != [2, 3]:
        return
    size, keepdim = list(source.meta["val"].shape[2:]), bool(rest and rest[0])
    with module.graph.inserting_before(node):
        pooled = last = module.graph.call_function(_aten.avg_pool2d.default, (source, size, [1, 1]))
        if not keepdim:
            last = module.graph.call_function(_aten.flatten.using_ints, (pooled, 1))
    rounding = next(iter(node.users))
    node.replace_all_uses_with(last)
    if not keepdim:
        _round_behind(module, pooled, rounding, last)


def mark_integers(program: ExportedProgram) -> None:
    """Mark, in place, the operators that stand between integers, since the Arm backend takes no others."""
    from executorch.backends.arm.common.annotation_meta import ArmAnnotationInfo

    for node in _between_integers(program):
        node.meta.setdefault("custom", {})[ArmAnnotationInfo.CUSTOM_META_KEY] = {"quantized": True}


def _between_integers(program: ExportedProgram) -> set[Node]:
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and _name(n) not in _ROUNDINGS]
    integer_nodes: set[Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        if sources and all(_name(source) in _ROUNDINGS - {_QUANTIZE} or source in integer_nodes for source in sources):
            integer_nodes.add(node)
    for node in reversed(nodes):
        if not all(_name(user) == _QUANTIZE or user in integer_nodes for user in node.users):
            integer_nodes.discard(node)
    return integer_nodes
