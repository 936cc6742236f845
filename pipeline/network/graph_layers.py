"""The operations of a captured graph by the names of the network's layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node

if TYPE_CHECKING:
    pass


_PASSIVE = ("relu", "pool", "mean", "reshape", "cat")
"""Operator patterns whose output has its input's grid."""
_CLIPS = ("relu", "hardtanh", "clamp")


def layers_of(prepared: GraphModule) -> dict[str, tuple[str, frozenset[str]]]:
    """Layer -> its operation, and the fake quantizers at its inputs, weights and output.

    Operations that only move, select or average numbers are no layers: they are quantized where their input is.
    """
    passive = _passive_operators()
    layers: dict[str, tuple[str, set[str]]] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_function" or node.target in passive:
            continue
        inputs = {str(source.target) for source in node.all_input_nodes if is_fake_quantizer(prepared, source)}
        outputs = {str(user.target) for user in _readers_behind(node) if is_fake_quantizer(prepared, user)}
        if inputs:
            _, places = layers.setdefault(layer_name(node), (_operation_name(node), set()))
            places |= inputs | outputs
    return {name: (operation, frozenset(places)) for name, (operation, places) in layers.items()}


def module_name(node: Node) -> str:
    """The dotted name of the module that a captured operation stands in; empty where the capture did not keep it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def layer_name(node: Node) -> str:
    """The name of the module an operation stands in, or its own where the network's own ``forward`` does it."""
    return module_name(node) or node.name


def nodes_of(graph: GraphModule, layers: Collection[str]) -> frozenset[str]:
    """Names of the graph's operations that belong to ``layers``, and of those that only move what these give.

    A concatenation, say, of a float layer's values and others' would round them after all, on a grid they share.
    """
    passive, nodes = _passive_operators(), set[str]()
    for node in graph.graph.nodes:
        passes_on = node.target in passive and any(source.name in nodes for source in node.all_input_nodes)
        if node.op == "call_function" and (passes_on or layer_name(node) in layers):
            nodes.add(node.name)
    return frozenset(nodes)


def _passive_operators() -> frozenset[object]:
    from edgewise.targets._int8 import PATTERNS

    return frozenset(target for pattern in PATTERNS if pattern.operator in _PASSIVE for target in pattern.overloads)


def _operation_name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _is_clip(node: Node) -> bool:
    return any(name in str(node.target) for name in _CLIPS)


def _readers_behind(node: Node) -> list[Node]:
    """What reads a node, through a clipping that it alone feeds."""
    users = list(node.users)
    return list(users[0].users) if len(users) == 1 and _is_clip(users[0]) else users


def is_fake_quantizer(prepared: GraphModule, node: Node) -> bool:
    """Whether ``node`` calls one of the prepared graph's fake quantizers."""
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    return node.op == "call_module" and isinstance(prepared.get_submodule(str(node.target)), FakeQuantizeBase)
