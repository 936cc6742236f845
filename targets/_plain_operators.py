"""Operators that some converters lack or lower wrongly, written as others that compute the same.

Found by lowering each operator of torch.nn and torch.nn.functional by itself and comparing the file's answers: in
ExecuTorch 1.4 two clips in a row fuse into the last one alone, adaptive max pooling has no kernel, and neither has the
three-dimensional average pooling of local response normalization.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from edgewise.targets._rewrite import Rule, insert_call

_aten = torch.ops.aten


def read_arguments(node: Node, *names: str) -> list[Any]:
    """What is given for the operator's parameters in turn, by place or by name; None where nothing is."""
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(name) for name in names]


CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""The parameters of ``aten.conv1d`` and ``aten.conv2d``."""


def clip_in_floats(graph: Graph, node: Node) -> Node | None:
    """One clip for two in a row, with both bounds, of one type: of an integer and a float, converters make mixed types."""
    merged = clips_as_one(graph, node)
    bounds = clip_bounds(node)
    if merged is not None or bounds is None or not _is_float(node):
        return merged
    is_short = (
        node.target in _HARD_TANH and len(node.args) < 3
    )  # left at its defaults, which Core ML's converter asks for
    is_mixed = {type(bound) for bound in node.args[1:]} == {int, float}
    return _insert_clip(graph, node.args[0], *bounds) if is_short or is_mixed else None


def clamp_as_activation(graph: Graph, node: Node) -> Node | None:
    """A clamp by the name that kernels fuse it under: ReLU from 0, hard tanh where both ends are bounded from 0 or below."""
    bounds = clip_bounds(node)
    if bounds is None or not _is_float(node) or not (-math.inf < bounds[0] <= 0):
        return None
    return _insert_clip(graph, node.args[0], *bounds) if bounds[0] == 0 or bounds[1] < math.inf else None


def _insert_clip(graph: Graph, x: Any, low: float, high: float) -> Node:
    """ReLU, hard tanh, or a clamp with one end."""
    if (low, high) == (0, math.inf):
        return insert_call(graph, _aten.relu.default, x)
    if -math.inf < low < high < math.inf:
        return insert_call(graph, _aten.hardtanh.default, x, low, high)
    return insert_call(graph, _aten.clamp.default, x, _finite(low), _finite(high))


def rrelu_as_leaky(graph: Graph, node: Node) -> Node | None:
    """Outside training the slope is the middle of its range (Xu et al. 2015, arXiv 1505.00853)."""
    x, lower, upper, training = read_arguments(node, "self", "lower", "upper", "training")
    lower, upper = (1 / 8 if lower is None else lower), (1 / 3 if upper is None else upper)
    return None if training else insert_call(graph, _aten.leaky_relu.default, x, (lower + upper) / 2)


def variance_and_mean_apart(graph: Graph, node: Node) -> Node | None:
    """One of the two results of ``var_mean`` by an operator of its own."""
    source, index = read_arguments(node, "self", "index")
    if not isinstance(source, Node) or source.target not in _VARIANCES:
        return None
    if index == 0:
        return insert_call(graph, _VARIANCES[source.target], *source.args, **source.kwargs)
    everything = source.target is _aten.var_mean.default
    x, dims, _, keepdim = read_arguments(source, "self", "" if everything else "dim", "", "keepdim")
    if everything or dims is None:
        dims = list(range(x.meta["val"].dim()))
    return insert_call(graph, _aten.mean.dim, x, dims, bool(keepdim))


_VARIANCES: Mapping[object, Any] = {
    _aten.var_mean.default: _aten.var.default,
    _aten.var_mean.dim: _aten.var.dim,
    _aten.var_mean.correction: _aten.var.correction,
}


def adaptive_max_as_max(graph: Graph, node: Node) -> Node | None:
    """Pooling over equal windows, where the output's sides divide the input's."""
    x, sides = read_arguments(node, "self", "output_size")
    windows = _equal_windows(x.meta["val"].shape[-2:], sides)
    return None if windows is None else insert_call(graph, _aten.max_pool2d_with_indices.default, x, windows, windows)


def _equal_windows(sides: Any, wanted: Any) -> list[int] | None:
    if any(not isinstance(side, int) or side % part for side, part in zip(sides, wanted, strict=True)):
        return None
    return [side // part for side, part in zip(sides, wanted, strict=True)]


def channel_average_as_sum(graph: Graph, node: Node) -> Node | None:
    """Average pooling along the first of three dimensions by single steps: the sum of as many shifted slices.

    What local response normalization averages over channels with (Krizhevsky et al. 2012, section 3.3).
    """
    x, window, stride, padding, _, _, divisor = read_arguments(
        node, "self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    )
    size = window[0]
    if list(window[1:]) != [1, 1] or divisor or set(padding or [0]) != {0} or set(stride or window) != {1}:
        return None
    length = x.meta["val"].shape[-3] - size + 1
    total = insert_call(graph, _aten.slice.Tensor, x, -3, 0, length)
    for start in range(1, size):
        shifted = insert_call(graph, _aten.slice.Tensor, x, -3, start, start + length)
        total = insert_call(graph, _aten.add.Tensor, total, shifted)
    return insert_call(graph, _aten.mul.Tensor, total, 1 / size)


def clips_as_one(graph: Graph, node: Node) -> Node | None:
    """A clip of a clip clips to what both let through."""
    (source,) = read_arguments(node, "self")
    if not isinstance(source, Node) or len(source.users) != 1 or not _is_float(source):
        return None
    if source.target in _IN_PLACE:
        before = source.args[0]
        if not isinstance(before, Node) or len(before.users) != 1:
            return None
        source.target = _IN_PLACE[source.target]  # so that nothing keeps it once it is not read
    first, second = clip_bounds(source), clip_bounds(node)
    if first is None or second is None:
        return None
    # The second decides where the two have nothing in common.
    low = min(max(first[0], second[0]), second[1])
    high = max(min(first[1], second[1]), second[0])
    return _insert_clip(graph, source.args[0], low, high)


def clip_from_zero(graph: Graph, node: Node) -> Node | None:
    """A clip with a lower bound above 0 behind a convolution, a product or a dequantization as one from 0 between two shifts.

    XNNPACK fuses such a clip into what is before it and then refuses to run.
    """
    source, bounds = *read_arguments(node, "self"), clip_bounds(node)
    if not isinstance(source, Node) or bounds is None or not 0 < bounds[0] < math.inf:
        return None
    if source.target not in _FUSING and "dequantize_per_tensor" not in str(source.target):
        return None
    low, high = bounds
    shifted = insert_call(graph, _aten.sub.Tensor, source, low)
    clipped = insert_call(graph, _aten.clamp.default, shifted, 0.0, _finite(max(high - low, 0.0)))
    return insert_call(graph, _aten.add.Tensor, clipped, low)


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def clip_bounds(node: Node) -> tuple[float, float] | None:
    """What a node clips to; None: it is no clip."""
    if node.target in (_aten.relu.default, _aten.relu_.default):
        return 0.0, math.inf
    if node.target in (_aten.relu6.default, _aten.relu6_.default):
        return 0.0, 6.0
    defaults = _DEFAULTS.get(node.target)
    if defaults is None:
        return None
    names = ("min", "max") if "clamp" in str(node.target) else ("min_val", "max_val")
    bounds = read_arguments(node, "self", *names)[1:]
    low, high = (default if bound is None else bound for bound, default in zip(bounds, defaults, strict=True))
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


_DEFAULTS: Mapping[object, tuple[float | None, float | None]] = {
    _aten.hardtanh.default: (-1.0, 1.0),
    _aten.hardtanh_.default: (-1.0, 1.0),
    _aten.clamp.default: (None, None),
    _aten.clamp_.default: (None, None),
}
_HARD_TANH = frozenset({_aten.hardtanh.default, _aten.hardtanh_.default})
_IN_PLACE: Mapping[object, Any] = {
    _aten.relu_.default: _aten.relu.default,
    _aten.relu6_.default: _aten.relu6.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.clamp_.default: _aten.clamp.default,
}
_FUSING = frozenset(
    {
        *(getattr(_aten, f"conv{dims}d").default for dims in (1, 2)),
        _aten.conv2d.padding,
        _aten.conv_transpose2d.input,
        _aten.convolution.default,
        _aten.linear.default,
        _aten.addmm.default,
        _aten.batch_norm.default,
    }
)
_CLIPS = (*_IN_PLACE, *_IN_PLACE.values())


def _is_float(value: Any) -> bool:
    return isinstance(value, Node) and bool(value.meta["val"].is_floating_point())


def lerp_as_sum(graph: Graph, node: Node) -> Node:
    """x + w·(y − x)."""
    x, y, weight = read_arguments(node, "self", "end", "weight")
    difference = insert_call(graph, _aten.sub.Tensor, y, x)
    return insert_call(graph, _aten.add.Tensor, x, insert_call(graph, _aten.mul.Tensor, difference, weight))


def log_sigmoid_as_softplus(graph: Graph, node: Node) -> Node:
    """log sigmoid(x) = −softplus(−x)."""
    inverse = insert_call(graph, _aten.neg.default, node.args[0])
    return insert_call(graph, _aten.neg.default, insert_call(graph, _aten.softplus.default, inverse))


def alias_as_copy(graph: Graph, node: Node) -> Node:
    """Another name for the same values, which some converters do not know."""
    return insert_call(graph, _aten.clone.default, node.args[0])


def pooling_with_stride(graph: Graph, node: Node) -> Node | None:
    """Pooling whose stride is left to be the kernel's size, as ``F.max_pool2d(x, 2)`` leaves it, with that stride."""
    x, kernel, stride, *rest = (*node.args, [])[: max(3, len(node.args))]
    return None if stride else insert_call(graph, node.target, x, kernel, kernel, *rest, **node.kwargs)  # type: ignore[arg-type]


def attention_in_four_dimensions(graph: Graph, node: Node) -> Node | None:
    """[…, L, E] as [N, 1, L, E], the one form that every converter takes; a mask of several matrices stays as it is."""
    query, key, value, *rest = node.args
    mask = rest[0] if rest else node.kwargs.get("attn_mask")
    parts = [query, key, value]
    shapes = [tuple(part.meta["val"].shape) for part in parts if isinstance(part, Node)]
    if {len(shape) for shape in shapes} == {4} or any(not isinstance(side, int) for shape in shapes for side in shape):
        return None
    if len({shape[:-2] for shape in shapes}) > 1 or (isinstance(mask, Node) and mask.meta["val"].dim() > 2):
        return None
    four = [
        insert_call(graph, _aten.reshape.default, part, [-1, 1, *shape[-2:]])
        for part, shape in zip(parts, shapes, strict=True)
    ]
    answer = insert_call(graph, node.target, *four, *rest, **node.kwargs)  # type: ignore[arg-type]
    return insert_call(graph, _aten.reshape.default, answer, list(node.meta["val"].shape))


CLAMPS: Mapping[object, Rule] = dict.fromkeys((_aten.clamp.default, _aten.clamp_.default), clamp_as_activation)
"""For a graph before fake quantizers are put into it."""

PLAIN: Mapping[object, Rule] = {
    **dict.fromkeys(_CLIPS, clip_in_floats),
    _aten.rrelu.default: rrelu_as_leaky,
    _aten.rrelu_.default: rrelu_as_leaky,
    operator.getitem: variance_and_mean_apart,
    _aten.alias.default: alias_as_copy,
    _aten.max_pool2d.default: pooling_with_stride,
    _aten.max_pool2d_with_indices.default: pooling_with_stride,
    _aten.avg_pool2d.default: pooling_with_stride,
    _aten.scaled_dot_product_attention.default: attention_in_four_dimensions,
    _aten.lerp.Scalar: lerp_as_sum,
    _aten.log_sigmoid.default: log_sigmoid_as_softplus,
}
"""For every target."""

EXECUTORCH: Mapping[object, Rule] = {
    _aten.adaptive_max_pool2d.default: adaptive_max_as_max,
    _aten.avg_pool3d.default: channel_average_as_sum,
}
"""For ExecuTorch's backends."""

XNNPACK: Mapping[object, Rule] = {**EXECUTORCH, **dict.fromkeys(_CLIPS, clip_from_zero)}
"""For XNNPACK behind ExecuTorch."""
