"""Operators of a captured graph that change what they are given, as their forms that leave it.

A quantization put between two operators has its result changed by the second, where the network's own code had no such value.
"""

from __future__ import annotations

from operator import getitem

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node


def leave_inputs(graph: GraphModule) -> None:
    """In place: each such operator whose input nobody else reads or shares memory with."""
    for node in graph.graph.nodes:
        plain = _plain_form(node.target)
        if plain is not None and _is_own(node.args[0]):
            node.target = plain
    graph.recompile()


def _plain_form(target: object) -> OpOverload | None:
    """``aten.relu`` for ``aten.relu_``; None for what changes nothing or has no such form."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable or target.namespace != "aten":
        return None
    packet = getattr(torch.ops.aten, target._schema.name.split("::")[1].removesuffix("_"), None)
    plain = getattr(packet, target._overloadname, None)
    if not isinstance(plain, OpOverload) or plain._schema.is_mutable:
        return None
    names = [[argument.name for argument in form._schema.arguments] for form in (plain, target)]
    return plain if names[0] == names[1] else None


def _is_own(value: object) -> bool:
    """Whether a value is an operator's new result, or one of several, which one reader has."""
    if not isinstance(value, Node) or len(value.users) != 1:
        return False
    made = value.args[0] if value.target is getitem else value
    if not isinstance(made, Node) or not isinstance(made.target, OpOverload):
        return False
    return all(answer.alias_info is None for answer in made.target._schema.returns)
