"""Operators that LiteRT's converter lacks or lowers wrongly, written as others that compute the same.

Found as the others' (``_plain_operators``), with litert-torch 0.10.0: in its change to channels-last it loses the broadcast of an
expanded denominator (``F.normalize``) and of a number that takes values' place (``F.hardshrink``, ``F.threshold``), and a softmax
between integers becomes one of integers on whatever scale it is read, which the runtime's kernel refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from edgewise.targets._plain_operators import adaptive_max_as_max, read_arguments
from edgewise.targets._rewrite import HARD_SIGMOID, Rule, insert_call
from edgewise.targets.litert._depthwise import split_depthwise

_aten = torch.ops.aten


def _without_expansion(graph: Graph, node: Node) -> Node | None:
    """An elementwise operator of an expanded argument as one of what was expanded, where broadcasting does it."""
    if not _broadcasts(node):
        return None
    pair = [_unexpanded(argument) for argument in node.args[:2]]
    return insert_call(graph, node.target, *pair, *node.args[2:], **node.kwargs)  # type: ignore[arg-type]


def _broadcasts(node: Node) -> bool:
    """Whether an elementwise operator gives its result without the expansion of an argument, too."""
    pair = [_unexpanded(argument) for argument in node.args[:2]]
    shape = node.meta["val"].shape
    return (
        node.target in _ELEMENTWISE
        and any(new is not old for new, old in zip(pair, node.args, strict=False))
        and any(isinstance(new, Node) and new.meta["val"].shape == shape for new in pair)
    )


def _expansion_as_copies(graph: Graph, node: Node) -> Node | None:
    """An expanded value as copies of it side by side, where some reader needs it whole."""
    x, shape = node.args[0], node.meta["val"].shape
    assert isinstance(x, Node)
    if all(_broadcasts(reader) for reader in node.users):
        return None
    given = x.meta["val"].shape
    return _lay_copies(graph, x, [wanted // side for side, wanted in zip(given, shape, strict=False)], len(shape))


def _repetition_as_copies(graph: Graph, node: Node) -> Node | None:
    """A repeated value as copies of it side by side."""
    x, times = read_arguments(node, "self", "repeats")
    return _lay_copies(graph, x, times, len(times))


def _lay_copies(graph: Graph, x: Node, times: Sequence[int], dims: int) -> Node | None:
    """``x`` so many times along each axis, by concatenations, whose change to channels-last the converter knows."""
    if x.meta["val"].dim() != dims or all(count == 1 for count in times):
        return None
    for axis, count in enumerate(times):
        if count != 1:
            x = insert_call(graph, _aten.cat.default, [x] * count, axis)
    return x


def _unexpanded(argument: Any) -> Any:
    while isinstance(argument, Node) and argument.target in _EXPANSIONS:
        argument = argument.args[0]
    return argument


def _hard_shrink_as_product(graph: Graph, node: Node) -> Node:
    """x·[|x| > λ]."""
    x, bound = read_arguments(node, "self", "lambd")
    sizes = insert_call(graph, _aten.abs.default, x)
    return _keep(graph, x, insert_call(graph, _aten.gt.Scalar, sizes, 0.5 if bound is None else bound))


def _threshold_as_product(graph: Graph, node: Node) -> Node | None:
    """x·[x > t] where what takes the place of the rest is 0."""
    x, bound, value = read_arguments(node, "self", "threshold", "value")
    return None if value else _keep(graph, x, insert_call(graph, _aten.gt.Scalar, x, bound))


def _fill_as_sum(graph: Graph, node: Node) -> Node | None:
    """x·[not m] + v·m for integers x and a finite number v that takes the place of some."""
    x, mask, value = read_arguments(node, "self", "mask", "value")
    if not _is_dequantized(x) or not math.isfinite(value):
        return None
    kept = _keep(graph, x, insert_call(graph, _aten.logical_not.default, mask))
    filled = insert_call(graph, _aten.mul.Tensor, _as_floats(graph, mask), value)
    return insert_call(graph, _aten.add.Tensor, kept, filled)


def _keep(graph: Graph, x: Any, mask: Node) -> Node:
    return insert_call(graph, _aten.mul.Tensor, x, _as_floats(graph, mask))


def _as_floats(graph: Graph, mask: Any) -> Node:
    return insert_call(graph, _aten._to_copy.default, mask, dtype=torch.float32)


def _softmax_in_floats(graph: Graph, node: Node) -> Node | None:
    """A softmax that is read as integers on a scale of their own, in parts that stay floats.

    The division is written as a product, for the converter finds a softmax in its usual parts again.
    """
    x, dim = node.args[:2]
    readers = [user for user in node.users if is_a(user, "quantize_per_tensor")]
    if all(math.isclose(reader.args[1], _SOFTMAX_STEP, rel_tol=1e-4) for reader in readers):  # type: ignore[arg-type]
        return None
    shifted = insert_call(graph, _aten.sub.Tensor, x, insert_call(graph, _aten.amax.default, x, [dim], True))
    powers = insert_call(graph, _aten.exp.default, shifted)
    total = insert_call(graph, _aten.sum.dim_IntList, powers, [dim], True)
    return insert_call(graph, _aten.mul.Tensor, powers, insert_call(graph, _aten.reciprocal.default, total))


def _norm_as_sum(graph: Graph, node: Node) -> Node | None:
    """The sum of sizes, or the root of the sum of squares, whose change to channels-last the converter knows."""
    x, order, dims, keepdim, dtype = read_arguments(node, "self", "ord", "dim", "keepdim", "dtype")
    if order not in (None, 1, 2) or dtype is not None:
        return None
    axes = list(range(x.meta["val"].dim())) if dims is None else dims
    if order == 1:
        return insert_call(graph, _aten.sum.dim_IntList, insert_call(graph, _aten.abs.default, x), axes, bool(keepdim))
    squares = _square_sizes(graph, x) if _is_dequantized(x) else insert_call(graph, _aten.mul.Tensor, x, x)
    return insert_call(
        graph, _aten.sqrt.default, insert_call(graph, _aten.sum.dim_IntList, squares, axes, bool(keepdim))
    )


def _square_in_floats(graph: Graph, node: Node) -> Node | None:
    """x·x of integers, where it is summed: a length, by which x may be divided."""
    x, other = node.args[:2]
    is_square = other == 2 if node.target is _aten.pow.Tensor_Scalar else other is x
    if not is_square or not _is_dequantized(x) or not any(user.target in _SUMS for user in node.users):
        return None
    return _square_sizes(graph, x)


def _square_sizes(graph: Graph, x: Any) -> Node:
    """|x|·|x|: in x·x the converter finds a normalization by length, of integers on a scale of its own as a softmax is."""
    sizes = insert_call(graph, _aten.abs.default, x)
    return insert_call(graph, _aten.mul.Tensor, sizes, sizes)


def _is_dequantized(x: Any) -> bool:
    return is_a(x, "dequantize_per")


def is_a(value: object, name: str) -> bool:
    """Whether it is a call of an operator whose name begins so, in whatever namespace."""
    return isinstance(value, Node) and f".{name}" in str(value.target)


def _sum(graph: Graph, node: Node) -> Node | None:
    """x + x of one channel is twice x: the converter mixes up the two scales of such a sum of integers."""
    x, other = node.args[:2]
    if other is x and _is_dequantized(x) and not node.kwargs:
        return insert_call(graph, _aten.mul.Tensor, x, 2.0)
    return _without_expansion(graph, node)


def _product(graph: Graph, node: Node) -> Node | None:
    return _square_in_floats(graph, node) or _without_expansion(graph, node)


_SOFTMAX_STEP = 1 / 256
"""Of the integers that the runtime's kernel gives."""
_SUMS = (_aten.sum.dim_IntList, _aten.sum.default, _aten.mean.dim)
_EXPANSIONS = (_aten.expand.default, _aten.expand_as.default)
_ELEMENTWISE = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor)

PLAIN: Mapping[object, Rule] = {
    **HARD_SIGMOID,
    **dict.fromkeys(_ELEMENTWISE, _without_expansion),
    _aten.add.Tensor: _sum,
    _aten.mul.Tensor: _product,
    _aten.pow.Tensor_Scalar: _square_in_floats,
    **dict.fromkeys((_aten.softmax.int, _aten._softmax.default), _softmax_in_floats),
    **dict.fromkeys(_EXPANSIONS, _expansion_as_copies),
    _aten.repeat.default: _repetition_as_copies,
    _aten.linalg_vector_norm.default: _norm_as_sum,
    **dict.fromkeys((_aten.conv2d.default, _aten.conv2d.padding), split_depthwise),
    _aten.adaptive_max_pool2d.default: adaptive_max_as_max,
    _aten.hardshrink.default: _hard_shrink_as_product,
    _aten.masked_fill.Scalar: _fill_as_sum,
    _aten.threshold.default: _threshold_as_product,
}
