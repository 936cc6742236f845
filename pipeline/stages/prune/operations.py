"""What kinds of operations there are, as far as channels are concerned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.stages.prune.labels import varying_dims

ADDITIONS = {"add", "sub", "rsub"}
POINTWISE = {
    "where", "masked_fill", "lerp", "addcmul", "addcdiv", "dropout", "native_dropout", "hardtanh", "softplus", "hardswish",
    "hardsigmoid", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "threshold", "log_sigmoid_forward", "softshrink",
    "hardshrink", "rrelu_with_noise", "relu6", "fill", "zero",
}  # fmt: skip
"""Operations on numbers alone, beside those that torch marks so."""
VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten"}
COPIES = {"clone", "contiguous", "_to_copy", "lift_fresh"}
MOVES = VIEWS | COPIES | {
    "permute", "transpose", "t", "slice", "narrow", "select", "unsqueeze", "squeeze", "expand", "repeat", "cat", "stack",
    "split", "split_with_sizes", "unbind", "index", "index_select", "gather", "flip", "roll", "rot90", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "alias", "detach", "copy_", "im2col", "unfold",
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "diagonal",
    "movedim",
}  # fmt: skip
"""Operations that only move numbers."""
BY_NUMBER = {
    "slice", "narrow", "select", "split", "split_with_sizes", "index", "index_select", "gather", "flip", "roll",
    "repeat", "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "pixel_unshuffle",
}  # fmt: skip
"""Those that may count channels by numbers written into the network."""
MIXES = {
    "mean", "sum", "prod", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "linalg_vector_norm",
    "norm", "logsumexp", "median", "_softmax", "_safe_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "cummax",
    "logcumsumexp", "sort", "topk", "kthvalue", "argmax", "argmin", "argsort", "any", "all", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_max_pool2d", "mkldnn_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "grid_sampler_2d",
}  # fmt: skip


def name_of(func: Any) -> str:
    """The operation's name without overload and trailing underscore."""
    name: str = func._schema.name.split("::")[1]
    return name[:-1] if name.endswith("_") and name != "copy_" and not name.endswith("__") else name


def bind_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with defaults."""
    names = func._schema.arguments
    arguments = {argument.name: argument.default_value for argument in names if argument.has_default_value()}
    return arguments | {argument.name: value for argument, value in zip(names, args, strict=False)} | dict(kwargs)


def only_restrides(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the operation, not yet run, gives a tensor other strides and leaves every number in its place.

    Adaptive pooling of a channels-last image to 1 × 1 does so with its result.
    """
    if name_of(func) != "as_strided":
        return False
    bound = bind_arguments(func, args, kwargs)
    x, size, strides, offset = bound["self"], bound["size"], bound["stride"], bound["storage_offset"]
    stays = list(size) == list(x.shape) and offset in (None, x.storage_offset())
    return stays and all(side == 1 or new == old for side, new, old in zip(size, strides, x.stride(), strict=True))


def is_pointwise(func: Any, name: str) -> bool:
    """Whether it makes each number of the numbers at its place."""
    packet = getattr(torch.ops.aten, name, None)  # the form that changes its input carries no such mark
    overloads = [func] if packet is None else [func, *(getattr(packet, overload) for overload in packet.overloads())]
    return name in POINTWISE or any(torch.Tag.pointwise in overload.tags for overload in overloads)


def pad_labels(labels: Tensor, padding: Sequence[int]) -> Tensor:
    """Labels of a padded tensor: a border of an image is its channel's, new channels are nobody's."""
    along, padding_labels = varying_dims(labels), F.pad(labels, list(padding))
    for number in range(len(padding) // 2):
        dim = labels.dim() - 1 - number
        if dim not in along and padding_labels.numel():
            padding_labels = padding_labels.amax(dim, keepdim=True).expand_as(padding_labels)
    return padding_labels.clone()


def mixed_dims(name: str, bound: Mapping[str, Any], dims: int) -> list[int]:
    """Along which dimensions an operation mixes."""
    for digit in ("1", "2", "3"):
        if f"{digit}d" in name:
            return list(range(dims - int(digit), dims))
    dim = bound.get("dim", bound.get("axis"))
    if dim is None or dim == []:
        return list(range(dims))
    return sorted({d % dims for d in ([dim] if isinstance(dim, int) else dim)})
