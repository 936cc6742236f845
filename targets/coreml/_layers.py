"""MIL's convolutions, pooling, normalisation, products and image resizing in torch; parameters are MIL's own.

Images are [N, C, H, W] (or with one or three spatial axes); ``pad`` lists before and after of each spatial axis, the
first axis first. Source: the operator reference of Apple's coremltools, ``converters.mil.mil.ops.defs`` (iOS 15 to 18).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAXIMUM = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _padding(
    pad_type: str, pad: Sequence[int] | None, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """``pad`` as written, or what ``same`` and ``same_lower`` stand for: ceil(size / stride) outputs per axis."""
    if pad_type == "custom":
        return list(pad or [0] * 2 * len(sizes))
    if pad_type == "valid":
        return [0] * 2 * len(sizes)
    padding = []
    for size, window, stride in zip(sizes, windows, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        less, more = total // 2, total - total // 2
        padding += [less, more] if pad_type == "same" else [more, less]
    return padding


def _halves(pad: Sequence[int]) -> list[int] | None:
    """One number per axis where before and after are equal, else None."""
    return list(pad[::2]) if pad[::2] == pad[1::2] else None


def _outwards(pad: Sequence[int]) -> list[int]:
    """MIL's order of axes, first to last, turned into ``functional.pad``'s, last to first."""
    return [amount for axis in reversed(range(len(pad) // 2)) for amount in pad[2 * axis : 2 * axis + 2]]


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    axes = x.dim() - 2
    steps, spread = list(strides or [1] * axes), list(dilations or [1] * axes)
    windows = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], spread, strict=True)]
    amounts = _padding(pad_type, pad, x.shape[2:], windows, steps)
    equal = _halves(amounts)
    if equal is None:
        x, equal = functional.pad(x, _outwards(amounts)), [0] * axes
    return _CONV[axes](x, weight, bias, steps, equal, spread, groups)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pad_type: str = "valid",
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The whole transposed convolution, cropped by ``pad``, or from its start on to ``output_shape``."""
    axes = x.dim() - 2
    steps, spread = list(strides or [1] * axes), list(dilations or [1] * axes)
    full = _TRANSPOSED[axes](x, weight, None, steps, 0, 0, groups, spread)
    if pad_type == "custom":
        amounts = list(pad or [0] * 2 * axes)
    else:
        extra = [
            f - s * d if pad_type == "same" else 0 for f, s, d in zip(full.shape[2:], steps, x.shape[2:], strict=True)
        ]
        amounts = [amount for total in extra for amount in (total // 2, total - total // 2)]
    crop = []
    for axis, size in enumerate(full.shape[2:]):
        before, after = amounts[2 * axis : 2 * axis + 2]
        expected = output_shape[axis + 2] if output_shape else size - before - after
        crop += [-before, expected - (size - before)]
    full = functional.pad(full, _outwards(crop))
    return full if bias is None else full + bias.reshape(-1, *[1] * axes)


def _avg_pool(
    x: Tensor,
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    axes = x.dim() - 2
    pool, kernel, steps = _AVERAGE[axes], list(kernel_sizes), list(strides or [1] * axes)
    amounts = _padding(pad_type, pad, x.shape[2:], kernel, steps)
    equal = _halves(amounts)
    if equal is not None:
        return pool(x, kernel, steps, equal, ceil_mode, not exclude_padding_from_average)
    outwards = _outwards(amounts)
    mean = pool(functional.pad(x, outwards), kernel, steps)
    if not exclude_padding_from_average:
        return mean
    return mean / pool(functional.pad(torch.ones_like(x), outwards), kernel, steps)


def _max_pool(
    x: Tensor,
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    axes = x.dim() - 2
    kernel, steps = list(kernel_sizes), list(strides or [1] * axes)
    amounts = _padding(pad_type, pad, x.shape[2:], kernel, steps)
    equal = _halves(amounts)
    if equal is None:
        x, equal = functional.pad(x, _outwards(amounts), value=-math.inf), [0] * axes
    maxima: Tensor = _MAXIMUM[axes](x, kernel, steps, equal, 1, ceil_mode)
    return maxima


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def _einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _layer_norm(
    x: Tensor,
    axes: Sequence[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    dims = [axis % x.dim() for axis in (range(x.dim()) if axes is None else axes)]
    shape = [size if axis in dims else 1 for axis, size in enumerate(x.shape)]
    difference = x - x.mean(dims, keepdim=True)
    normal = difference * torch.rsqrt(difference.square().mean(dims, keepdim=True) + epsilon)
    scaled = normal if gamma is None else normal * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def _l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


def _local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    return functional.local_response_norm(x, size, alpha, beta, k)


def _grid(size: int, count: int, mode: str) -> Tensor:
    """Where along an axis of ``size`` samples the ``count`` outputs lie (MIL, ``resize_bilinear``)."""
    index = torch.arange(count, dtype=torch.float32)
    if mode == "ALIGN_CORNERS" and count == 1:
        return torch.tensor([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = index * ((size - 1) / max(count - 1, 1))
    elif mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * (size / count) - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (index + 0.5) * (max(1, size - 1) / count)
    else:
        points = index * (size / count)
    return points.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, count: int, mode: str) -> Tensor:
    points = _grid(x.shape[axis], count, mode)
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (points - low).reshape(-1, *[1] * (-1 - axis))
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _interpolate(_interpolate(x, -2, target_size_height, sampling_mode), -1, target_size_width, sampling_mode)


def _upsample_bilinear(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True
) -> Tensor:
    height, width = int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width)
    return _resize_bilinear(x, height, width, "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS")


def _nearest(x: Tensor, axis: int, count: int) -> Tensor:
    size = x.shape[axis]
    return x.index_select(axis, torch.tensor([min(i * size // count, size - 1) for i in range(count)]))


def _resize_nearest(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _nearest(_nearest(x, -2, target_size_height), -1, target_size_width)


def _upsample_nearest(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return _resize_nearest(x, int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width))


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "scaled_dot_product_attention": _attention,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
