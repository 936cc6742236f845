"""Regions of a captured graph in which gradients or mixed precision are switched, written as the rest of the graph is.

``torch.no_grad()`` and ``torch.autocast(…)`` within a network's code are each captured as one operator that calls a graph of its
own, in which neither a quantizer nor a reader of the graph would find the layers.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

_REGIONS = frozenset({torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast})


def export_plain(model: nn.Module, image: Tensor, dynamic_shapes: tuple[Any, ...] | None = None) -> ExportedProgram:
    """``torch.export.export`` of ``model`` for ``image`` [N, C, H, W], with what its regions call in the graph itself."""
    program = torch.export.export(model, (image,), dynamic_shapes=dynamic_shapes)
    if not any(node.target in _REGIONS for node in program.graph.nodes):
        return program
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    inline_regions(graph)
    return torch.export.export(graph, (image,), dynamic_shapes=dynamic_shapes)


def inline_regions(graph: GraphModule) -> None:
    """Put what each region of ``graph`` calls into the graph itself, in place; what was switched there is not any more."""
    while regions := [node for node in graph.graph.nodes if node.target in _REGIONS]:
        for node in regions:
            _inline_region(graph, node)
        graph.graph.eliminate_dead_code()
        graph.delete_all_unused_submodules()
        graph.recompile()


def _inline_region(graph: GraphModule, node: Node) -> None:
    place = next(i for i, value in enumerate(node.args) if _is_part(graph, value))
    called, inputs = node.args[place], iter(node.args[place + 1 :])
    assert isinstance(called, Node)
    inner = graph.get_submodule(str(called.target))
    assert isinstance(inner, GraphModule)
    values: dict[Node, Any] = {}
    with graph.graph.inserting_before(node):
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                values[part] = next(inputs)
            elif part.op == "get_attr":
                values[part] = _take_attribute(graph, inner, str(part.target), str(called.target))
            elif part.op != "output":
                values[part] = graph.graph.node_copy(part, values.__getitem__)
    answers: Any = map_arg(inner.graph.output_node().args[0], values.__getitem__)
    for user in list(node.users):
        assert user.target is getitem
        user.replace_all_uses_with(answers[user.args[1]])
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def _is_part(graph: GraphModule, value: object) -> bool:
    return (
        isinstance(value, Node)
        and value.op == "get_attr"
        and isinstance(getattr(graph, str(value.target), None), nn.Module)
    )


def _take_attribute(graph: GraphModule, inner: GraphModule, name: str, prefix: str) -> Node:
    """A node that gets what ``inner`` has under ``name``, from ``graph`` now."""
    value, own = getattr(inner, name), f"{prefix}_{name}"
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        graph.register_buffer(own, value)
    else:
        setattr(graph, own, value)
    return graph.graph.get_attr(own)
