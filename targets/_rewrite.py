"""Operators written as others that compute the same, where a runtime has faster or only kernels for those."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers

_aten = torch.ops.aten

Rule = Callable[[Graph, Node], Node | None]
"""Builds what replaces a node, before it, and returns the last of it; None: it stays."""


def rewrite_graph(graph: Graph, rules: Mapping[object, Rule]) -> int:
    """Replace in place each operator that ``rules`` name; returns how many were replaced."""
    count = 0
    for node in list(graph.nodes):
        rule = rules.get(node.target)
        if rule is None:
            continue
        with graph.inserting_before(node):
            replacement = rule(graph, node)
        if replacement is not None:
            name = node.name
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
            replacement._rename(name)  # a program's signature knows its outputs by name
            count += 1
    return count


def rewrite_program(program: ExportedProgram, rules: Mapping[object, Rule]) -> ExportedProgram:
    """A copy of ``program`` with ``rules`` applied; the program itself where they find nothing."""
    if not any(node.target in rules for node in program.graph.nodes):
        return program
    with quiet_loggers(messages=(LEAF_SPEC,)):
        program = copy.deepcopy(program)
    rewrite_graph(program.graph_module.graph, rules)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def insert_call(graph: Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """A new call of ``target`` at the graph's insertion point, with the shape and type of its result noted."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*map_arg(args, lambda argument: argument.meta["val"]), **kwargs)
    return node


def silu_as_product(graph: Graph, node: Node) -> Node:
    """x·sigmoid(x): two operators that integer kernels have, where SiLU has none."""
    x = node.args[0]
    return insert_call(graph, _aten.mul.Tensor, x, insert_call(graph, _aten.sigmoid.default, x))


def hardsigmoid_as_clip(graph: Graph, node: Node) -> Node:
    """clip(x + 3, 0, 6) / 6 with float constants: integer ones would have to be cast while the file runs."""
    shifted_input = insert_call(graph, _aten.add.Tensor, node.args[0], 3.0)
    return insert_call(
        graph, _aten.mul.Tensor, insert_call(graph, _aten.hardtanh.default, shifted_input, 0.0, 6.0), 1 / 6
    )


HARD_SIGMOID: Mapping[object, Rule] = dict.fromkeys(
    (_aten.hardsigmoid.default, _aten.hardsigmoid_.default), hardsigmoid_as_clip
)


def attention_as_products(graph: Graph, node: Node) -> Node | None:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1); with a mask or dropout it stays as it is."""
    query, key, value, *rest = node.args
    if any(rest) or set(node.kwargs) - {"scale"}:
        return None
    assert isinstance(query, Node)
    scale = node.kwargs.get("scale") or query.meta["val"].shape[-1] ** -0.5
    scaled_query = insert_call(graph, _aten.mul.Tensor, query, scale)
    scores = insert_call(
        graph, _aten.matmul.default, scaled_query, insert_call(graph, _aten.transpose.int, key, -2, -1)
    )
    return insert_call(graph, _aten.matmul.default, insert_call(graph, _aten.softmax.int, scores, -1), value)
