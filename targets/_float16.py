"""A float network in half precision, its input and output left in float32, so that a caller need not convert."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets import Packaging, TargetError
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers


def with_float16(program: ExportedProgram, packaging: Packaging) -> ExportedProgram:
    """``program`` (float32) computing in float16 between a cast of its input and one of its output.

    Raises TargetError for a program of several image sizes, and for a constant beyond float16's range (65,504).
    """
    if packaging.sizes is not None and packaging.sizes.kind != "fixed":
        raise TargetError("wanted a program of one image size to compute in float16; leave the other sizes out")
    with quiet_loggers(messages=(LEAF_SPEC,)):
        graph = copy.deepcopy(program.module(check_guards=False))  # its tensors are the caller's
        assert isinstance(graph, GraphModule)
        for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
            if tensor.is_floating_point() and float(tensor.detach().abs().max()) > torch.finfo(torch.float16).max:
                raise TargetError(
                    f"float16 ends at 65,504, found a larger constant in {name}; choose another precision"
                )
        graph.half()
        for node in list(graph.graph.nodes):
            _narrow_node(graph, node)
        graph.recompile()
        return torch.export.export(graph, program.example_inputs[0])


def _narrow_node(graph: GraphModule, node: Node) -> None:
    if node.op == "placeholder":
        with graph.graph.inserting_after(node):
            narrow = graph.graph.call_function(torch.ops.aten.to.dtype, (node, torch.float16))
        node.replace_all_uses_with(narrow, delete_user_cb=lambda user: user is not narrow)
    elif node.op == "output":
        with graph.graph.inserting_before(node):
            node.args = torch.fx.map_arg(node.args, lambda value: _widen_value(graph, value))
    elif node.op == "call_function":
        node.args, node.kwargs = _half_type(node.args), _half_type(node.kwargs)


def _widen_value(graph: GraphModule, value: Node) -> Node:
    return graph.graph.call_function(torch.ops.aten.to.dtype, (value, torch.float32))


def _half_type(value: Any) -> Any:
    """float32 written as a type in an operator's arguments becomes float16."""
    if isinstance(value, (tuple, list)):
        return type(value)(_half_type(item) for item in value)
    if isinstance(value, dict):
        return {key: _half_type(item) for key, item in value.items()}
    return torch.float16 if value is torch.float32 else value
