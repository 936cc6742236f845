"""int8 weights written as a quantization of float ones, as some converters expect them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets._program import export_module


def rounded_in_the_graph(program: ExportedProgram, *, every_constant: bool = False) -> ExportedProgram:
    """``program`` with its int8 weights as floats behind a quantization, to the same integers again.

    Some converters look for a quantization of the weights: without one, they take the bare integers for the weights, or
    dequantize them and compute in float. ``every_constant``: those on one scale, too, which are factors and summands.
    """
    module = program.module(check_guards=False)
    kinds = ("dequantize_per_channel.default", *(["dequantize_per_tensor.default"] if every_constant else []))
    nodes = [node for node in module.graph.nodes if str(node.target).endswith(kinds) and _is_constant(node.args[0])]
    for node in nodes:
        _round_in_the_graph(module, node)
    if not nodes:
        return program
    module.recompile()
    return export_module(module, program)


def _round_in_the_graph(module: GraphModule, node: Node) -> None:
    quantized = torch.ops.quantized_decomposed
    source, *grid = node.args
    weight = read_attribute(module, source)
    name = f"_float_{node.name}"
    if node.target is quantized.dequantize_per_channel.default:
        scale, zero_point, axis, _, _, dtype = grid
        # The full range whatever the weights' width: it has the levels that runtimes compute in integers.
        grid = [scale, zero_point, axis, -127, 127, dtype]
        tensors = [read_attribute(module, part) for part in (scale, zero_point)]
        value, quantize = quantized.dequantize_per_channel(weight, *tensors, *grid[2:]), quantized.quantize_per_channel
    else:
        value, quantize = quantized.dequantize_per_tensor(weight, *grid), quantized.quantize_per_tensor
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        rounded = module.graph.call_function(quantize.default, (module.graph.get_attr(name), *grid))
    node.args = (rounded, *grid)


def _is_constant(value: object) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def read_attribute(module: GraphModule, node: object) -> Any:
    """What a node that gets an attribute of ``module`` or of a module below it gets: a constant or a weight, mostly."""
    owner, _, last = str(cast(Node, node).target).rpartition(".")
    return getattr(module.get_submodule(owner), last)
