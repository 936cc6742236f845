"""int8 weights written as a quantization of float ones, as some converters expect them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node


def rounded_in_the_graph(program: ExportedProgram) -> ExportedProgram:
    """``program`` with its int8 weights as floats behind a quantization, to the same integers again.

    Some converters look for a quantization of the weights: without one, they take the bare integers for the weights, or
    dequantize them and compute in float.
    """
    module = program.module(check_guards=False)
    nodes = [node for node in module.graph.nodes if str(node.target).endswith("dequantize_per_channel.default")]
    for node in nodes:
        _round_in_the_graph(module, node)
    if not nodes:
        return program
    module.recompile()
    return torch.export.export(module, cast(tuple[Any, ...], program.example_inputs[0]))


def _round_in_the_graph(module: GraphModule, node: Node) -> None:
    quantized = torch.ops.quantized_decomposed
    weight, scale, zero_point, axis, _, _, dtype = node.args
    # The full range whatever the weights' width: it has the levels that runtimes compute in integers.
    grid = (scale, zero_point, axis, -127, 127, dtype)
    values = [getattr(module, str(cast("Node", part).target)) for part in (weight, scale, zero_point)]
    name = f"_float_{node.name}"
    module.register_buffer(name, quantized.dequantize_per_channel(*values, axis, -127, 127, dtype))
    with module.graph.inserting_before(node):
        rounded = module.graph.call_function(
            quantized.quantize_per_channel.default, (module.graph.get_attr(name), *grid)
        )
    node.args = (rounded, *grid)
