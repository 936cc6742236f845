"""What the operations of layers do to labels: convolutions, products of matrices, norms, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.stages.prune.channels import INSTANCE_NORMS, PER_CHANNEL, WEIGHTED
from edgewise.stages.prune.labels import every_dim_but, pairs_of, varying_dims
from edgewise.stages.prune.one_pass import Pass

Bound = Mapping[str, Any]
"""Arguments by name."""


def convolution(seen: Pass, bound: Bound, result: Tensor) -> None:
    """A layer's, or one that only filters channels, or one with a kernel of the network's own making."""
    x, weight, groups = bound["input"], bound["weight"], bound["groups"]
    name = None if seen.labelled(weight) else seen.layer_of(weight, WEIGHTED)
    if name is None or seen.modules[name].weight.shape != weight.shape:
        _foreign_convolution(seen, x, weight, groups, result)
        return
    module = seen.modules[name]
    read = seen.read(x, 1, name)
    depthwise = groups == len(read) > 1
    one_side = depthwise and result.shape[1] == groups
    if not one_side:
        seen.notes.touch(name, module, "in", read)
    labels = seen.made(name, module, result, result.shape[1])
    _meet_in_weight(seen, name, weight, labels, None if one_side else read)
    if depthwise:
        filters = len(labels) // groups
        seen.notes.tie(labels, read.repeat_interleave(filters))


def _meet_in_weight(seen: Pass, name: str, weight: Tensor, outputs: Tensor, inputs: Tensor | None) -> None:
    """What a layer's weight is computed from beside its own goes with its channels: a gain for each output, a mask of its shape.

    ``outputs``, ``inputs``: their labels; no inputs where they are the outputs'.
    """
    owner = seen.owner(weight)
    if owner is None or owner.itself or all(part == (name, "weight") for part in owner.parts):
        return
    at = 1 if getattr(seen.modules[name], "transposed", False) else 0
    if seen.meet(owner, outputs, at, but=name):
        if inputs is not None:
            seen.meet(owner, inputs, 1 - at, but=name, strict=True)
        return
    others = [f"{layer}.{tensor}" for layer, tensor in owner.parts if (layer, tensor) != (name, "weight")]
    for labels in (outputs, inputs):
        if labels is not None:
            seen.notes.stop(labels, f"its weight is computed from more than itself ({', '.join(others)})")


def _foreign_convolution(seen: Pass, x: Tensor, weight: Tensor, groups: int, result: Tensor) -> None:
    """One whose kernel is no layer's weight."""
    owner = seen.owner(weight)
    if not seen.labelled(weight) and owner is None and groups == x.shape[1] == result.shape[1]:
        labels = seen.notes.merge(seen.shadow(x), every_dim_but(1, x.dim()), f"a convolution in {seen.here}")
        seen.keep(result, labels.expand(result.shape).clone())
        return
    kernel = f"a free parameter ({owner.words})" if owner else f"a kernel that the network computes in {seen.here}"
    for tensor in (x, weight):
        seen.notes.stop(seen.shadow(tensor), f"its channels meet {kernel}")


def _product(seen: Pass, one: Tensor, other: Tensor, result: Tensor) -> None:
    """A product of matrices [..., n, k] and [..., k, m]."""
    for x, weight, dims in ((one, other, (-1, -2)), (other, one, (-2, -1))):
        if not seen.labelled(weight) and seen.owner(weight) is not None:
            _linear(seen, x, weight, dims, result)
            return
    _contraction(seen, one, other, result)


def _linear(seen: Pass, x: Tensor, weight: Tensor, dims: tuple[int, int], result: Tensor) -> None:
    """``dims``: along which ``x`` is read, and along which ``weight`` is."""
    owner = seen.owner(weight)
    assert owner is not None
    name = seen.layer_of(weight, WEIGHTED)
    if name is None:
        seen.notes.stop(seen.shadow(x), f"its channels meet a free parameter ({owner.words})")
        return
    module = seen.modules[name]
    along = x.dim() + dims[0]
    read = seen.read(x, along, name)
    seen.notes.touch(name, module, "in", read)
    labels = seen.made(name, module, result, result.shape[along], along)
    _meet_in_weight(seen, name, weight, labels, read)


def _contraction(seen: Pass, one: Tensor, other: Tensor, result: Tensor) -> None:
    words = f"a product in {seen.here}"
    rows = seen.notes.merge(seen.shadow(one), [one.dim() - 1], words)
    columns = seen.notes.merge(seen.shadow(other), [other.dim() - 2], words)
    seen.notes.ties.append(pairs_of(rows, columns))
    labels = torch.where(rows != 0, rows, columns)
    seen.keep(result, labels.expand(result.shape).clone())


def attention(seen: Pass, bound: Bound, result: Any) -> None:
    """softmax(q·kᵀ)·v; q [..., n, d], k [..., m, d], v [..., m, e]."""
    query, key, value = bound["query"], bound["key"], bound["value"]
    output = result[0] if isinstance(result, tuple) else result
    words = f"attention in {seen.here}"
    rows = seen.notes.merge(seen.shadow(query), [query.dim() - 1], words)
    columns = seen.notes.merge(seen.shadow(key), [key.dim() - 1], words)
    scores = columns.transpose(-1, -2)
    seen.notes.ties.append(pairs_of(rows, scores))
    weights = torch.where(rows != 0, rows, scores)
    weights = seen.notes.merge(weights, [weights.dim() - 1], words)
    values = seen.notes.merge(seen.shadow(value), [value.dim() - 2], words)
    seen.notes.ties.append(pairs_of(weights, values))
    labels = torch.where(values != 0, values, weights)
    seen.keep(output, labels.expand(output.shape).clone())


def _norm(seen: Pass, x: Tensor, dim: int, name: str | None, output: Tensor) -> None:
    """A layer whose answers are its inputs, channel by channel: its channels carry what it is given."""
    labels = seen.shadow(x)
    if name is not None and dim in varying_dims(labels):
        seen.notes.touch(name, seen.modules[name], "out", seen.read(x, dim, name))
    elif name is None and dim in varying_dims(labels):
        seen.notes.hint(labels, f"a norm in {seen.here}")
    seen.keep(output, labels.clone())


def batch_norm(seen: Pass, bound: Bound, result: Any) -> None:
    """Batch norms, and instance norms, which run as such."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *INSTANCE_NORMS)
    name = next((n for t in ("weight", "running_mean") if (n := seen.layer_of(bound[t], kinds))), None)
    x = bound["input"]
    name = name or seen.running(kinds)
    if name is None:
        for owner in [owner for t in PER_CHANNEL if (owner := seen.owner(bound[t]))]:
            seen.meet_along(owner, seen.shadow(x), 1)
    _norm(seen, x, 1, name, result[0])


def layer_norm(seen: Pass, bound: Bound, result: Any) -> None:
    """Over the last dimension; over several at once no channel can be told from the others."""
    x, shape = bound["input"], bound["normalized_shape"]
    name = seen.layer_of(bound["weight"], (nn.LayerNorm,))
    if len(shape) > 1:
        seen.notes.stop(seen.shadow(x), f"they pass a norm over {len(shape)} dimensions at once in {seen.here}")
    _norm(seen, x, x.dim() - 1, name, result[0])


def group_norm(seen: Pass, bound: Bound, result: Any) -> None:
    """How its channels are counted in groups is the layer's (``channels.tie_of``)."""
    _norm(seen, bound["input"], 1, seen.layer_of(bound["weight"], (nn.GroupNorm,)), result[0])


def prelu(seen: Pass, bound: Bound, result: Tensor) -> None:
    """With a slope for each channel, or one for all."""
    weight = bound["weight"]
    name = seen.layer_of(weight, (nn.PReLU,)) if weight.numel() > 1 else None
    owner = seen.owner(weight)
    if name is None and weight.numel() > 1 and owner is not None:
        seen.meet_along(owner, seen.shadow(bound["self"]), 1)
    if name is None:
        seen.keep(result, seen.shadow(bound["self"]).clone())
    else:
        _norm(seen, bound["self"], 1, name, result)


def glu(seen: Pass, bound: Bound, result: Tensor) -> None:
    """One half of the channels times a gate of the other."""
    first, second = seen.shadow(bound["self"]).chunk(2, bound["dim"])
    seen.notes.ties.append(pairs_of(first, second))
    seen.keep(result, torch.where(first != 0, first, second))


RULES: Mapping[str, Callable[[Pass, Bound, Any], None]] = {
    "convolution": convolution,
    "mm": lambda seen, bound, result: _product(seen, bound["self"], bound["mat2"], result),
    "bmm": lambda seen, bound, result: _product(seen, bound["self"], bound["mat2"], result),
    "addmm": lambda seen, bound, result: _product(seen, bound["mat1"], bound["mat2"], result),
    "baddbmm": lambda seen, bound, result: _product(seen, bound["batch1"], bound["batch2"], result),
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "_prelu_kernel": prelu,
    "glu": glu,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention": attention,
    "_scaled_dot_product_efficient_attention": attention,
    "_scaled_dot_product_attention_math": attention,
}
"""Operation -> its rule."""
