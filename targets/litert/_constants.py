"""What does not depend on the image, computed as the file is written: LiteRT's converter loses its shape in channels-last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgewise.targets._rounded import read_attribute

_aten = torch.ops.aten
_LIKE = frozenset(
    {_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.new_zeros.default,
     _aten.new_ones.default, _aten.new_full.default}
)  # fmt: skip
"""They take of their first argument its shape and type alone."""


@torch.no_grad()
def fold_constants(module: GraphModule) -> None:
    """Put the results of operators on constants in their places, in ``module``; quantizations of whole weights stay."""
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = read_attribute(module, node)
        elif node.op == "call_function" and _is_constant(node, values):
            values[node] = _compute(node, values)
    for node, value in values.items():
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in values for user in node.users):
            _replace(module, node, value)
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_constant(node: Node, values: dict[Node, Any]) -> bool:
    if isinstance(node.target, OpOverload) and (
        ("quantize" in str(node.target) and not _is_read_in_parts(node))
        or node.target._schema.is_mutable
        or torch.Tag.nondeterministic_seeded in node.target.tags
    ):
        return False
    return node.target in _LIKE or all(source in values for source in node.all_input_nodes)


def _is_read_in_parts(node: Node) -> bool:
    """Whether only slices read it, or what it quantizes: the converter knows integers of whole weights alone."""
    return all(
        user.target is _aten.slice.Tensor or ("dequantize" in str(user.target) and _is_read_in_parts(user))
        for user in node.users
    )


def _compute(node: Node, values: dict[Node, Any]) -> Any:
    def value_of(source: Node) -> Any:
        if source in values:
            return values[source]
        like = source.meta["val"]
        return torch.empty(like.shape, dtype=like.dtype)

    assert callable(node.target)
    return node.target(*map_arg(node.args, value_of), **map_arg(node.kwargs, value_of))


def _replace(module: GraphModule, node: Node, value: Tensor) -> None:
    name = f"_constant_{node.name}"
    module.register_buffer(name, value.contiguous())
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta["val"] = node.meta.get("val", value)
    node.replace_all_uses_with(constant)
