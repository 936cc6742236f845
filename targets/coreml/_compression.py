"""MIL's quantized and compressed tensors in torch; parameters are MIL's own.

Source: the operator reference of Apple's coremltools, ``converters.mil.mil.ops.defs`` (``iOS16.constexpr_ops``,
``iOS17.quantization_ops``, ``iOS18.compression``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edgewise.targets.coreml._weights import unpack_bits

_RANGE = {"int8": (torch.int8, -128, 127), "uint8": (torch.uint8, 0, 255)}


def _along_axis(parameter: Tensor | float, x: Tensor, axis: int | None) -> Tensor | float:
    """A scalar, or a vector laid along ``axis`` of ``x``; as float32, so that zero points subtract without wrapping."""
    if not isinstance(parameter, Tensor):
        return float(parameter)
    if parameter.dim() == 0 or axis is None:
        return parameter.float()
    return parameter.float().reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _quantize(
    input: Tensor,
    scale: Tensor | float,
    output_dtype: str,
    zero_point: Tensor | int = 0,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point); halves round to even, as torch's and Core ML's own converters do."""
    dtype, low, high = _RANGE[output_dtype]
    steps = torch.round(input / _along_axis(scale, input, axis)) + _along_axis(zero_point, input, axis)
    return steps.clamp(low, high).to(dtype)


def _dequantize(
    input: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int = 0,
    axis: int | None = None,
) -> Tensor:
    return (input.float() - _along_axis(zero_point, input, axis)) * _along_axis(scale, input, axis)


def _affine(quantized_data: Tensor, scale: Tensor | float, zero_point: Tensor | float, axis: int) -> Tensor:
    return (quantized_data.float() - _along_axis(zero_point, quantized_data, axis)) * _along_axis(
        scale, quantized_data, axis
    )


def _stretch_blocks(parameter: Tensor, shape: Sequence[int]) -> Tensor:
    """Each element repeated over its block, until the sizes are ``shape``."""
    for axis, size in enumerate(shape):
        parameter = parameter.repeat_interleave(size // parameter.shape[axis], axis)
    return parameter


def _blockwise(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    offset_data = data.float() if offset is None else data.float() - _stretch_blocks(offset.float(), data.shape)
    return offset_data * _stretch_blocks(scale.float(), data.shape)


def _lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Sequence[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """Up to iOS 17 packed indices, one table and the result's ``shape``; from iOS 18 a table per block of indices."""
    if shape is not None:
        bits = round(math.log2(lut.numel()))
        flat = torch.from_numpy(unpack_bits(indices.numpy().tobytes(), bits, math.prod(shape)))
        return lut[flat.long()].reshape(list(shape))
    tables = lut
    for axis, size in enumerate(indices.shape):
        tables = tables.repeat_interleave(size // tables.shape[axis], axis)
    values = tables.gather(-2, indices.long()[..., None, None].expand(*indices.shape, 1, lut.shape[-1])).squeeze(-2)
    if vector_axis is None or lut.shape[-1] == 1:
        return values.squeeze(-1)
    axis = vector_axis % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Up to iOS 17 the mask is packed and ``shape`` given; from iOS 18 it has the result's own shape."""
    if shape is not None:
        bits = unpack_bits(mask.numpy().tobytes(), 1, math.prod(shape))
        mask = torch.from_numpy(bits).reshape(list(shape))
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask.bool()] = nonzero_data
    return dense


def _cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.float()


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
