"""MIL's operators that move values without computing with them; parameters are MIL's own.

Source: the operator reference of Apple's coremltools, ``converters.mil.mil.ops.defs`` (iOS 15 to 18).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Result = Tensor | tuple[Tensor, ...]


def _reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A 0 in ``shape`` keeps the size of ``x`` that stands as far from the right (iOS 17), 1 where there is none."""
    missing = len(shape) - x.dim()
    sizes = [1] * max(missing, 0) + list(x.shape[max(-missing, 0) :])
    return x.reshape([own if size == 0 else size for size, own in zip(shape, sizes, strict=True)])


def _transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    return x.permute(*perm)


def _expand_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    if interleave:
        return torch.stack(list(values), axis % values[0].dim() + 1).flatten(
            axis % values[0].dim(), axis % values[0].dim() + 1
        )
    return torch.cat([torch.as_tensor(value) for value in values], axis)


def _stack(values: Sequence[Tensor], axis: int) -> Tensor:
    return torch.stack([torch.as_tensor(value) for value in values], axis)


def _split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    sizes = list(split_sizes) if split_sizes else [x.shape[axis] // (num_splits or 1)] * (num_splits or 1)
    return tuple(torch.split(x, sizes, axis))


def _slice_by_index(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """Python's own slices, axis by axis; a step below zero runs backwards and torch has no such view."""
    index: list[int | slice] = []
    backwards = []
    for axis, size in enumerate(x.shape):
        if squeeze_mask and squeeze_mask[axis]:
            index.append(begin[axis])
            continue
        step = stride[axis] if stride else 1
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        positions = range(size)[first:last:step]
        if step < 0:
            backwards.append(sum(isinstance(item, slice) for item in index))
            positions = positions[::-1]
        index.append(slice(positions.start, positions.stop, positions.step) if len(positions) else slice(0, 0))
    return x[tuple(index)].flip(backwards) if backwards else x[tuple(index)]


def _slice_by_size(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    outwards = [amount for axis in reversed(range(len(pad) // 2)) for amount in pad[2 * axis : 2 * axis + 2]]
    if mode == "constant":
        return functional.pad(x, outwards, value=constant_val)
    while len(outwards) >= 2 and outwards[-2:] == [0, 0]:
        outwards = outwards[:-2]
    return functional.pad(x, outwards, mode=mode)


def _crop(x: Tensor, crop_height: Sequence[int], crop_width: Sequence[int]) -> Tensor:
    """Each pair is what to take away before and after."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    return x.repeat(*reps)


def _gather(
    x: Tensor, indices: Tensor | Sequence[int] | int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    if batch_dims:
        raise ValueError(f"gather with batch_dims={batch_dims} is not evaluated, only batch_dims=0")
    positions = torch.as_tensor(indices).long()
    start = axis % x.dim()
    picked = x.index_select(start, positions.reshape(-1))
    return picked.reshape(*x.shape[:start], *positions.shape, *x.shape[start + 1 :])


def _gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return torch.gather(x, axis, indices.long())


def _band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    above = x if upper < 0 else torch.tril(x, upper)
    return above if lower < 0 else torch.triu(above, -lower)


def _depth_to_space(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    split = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block_size**2, h * block_size, w * block_size)


def _space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block_size**2, h // block_size, w // block_size)


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return functional.pixel_shuffle(x, upscale_factor)


def _pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return functional.pixel_unshuffle(x, downscale_factor)


def _reverse(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else list(axes))


def _topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    values, indices = torch.topk(x, k, axis, largest=not ascending, sorted=sort)
    return (values, indices) if return_indices else (values,)


def _fill(shape: Sequence[int], value: float = 0.0) -> Tensor:
    return torch.full(list(shape), value)


def _identity(x: Tensor) -> Tensor:
    return x


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    if batch_dims:
        raise ValueError(f"gather_nd with batch_dims={batch_dims} is not evaluated, only batch_dims=0")
    return x[tuple(indices.long().unbind(-1))]


OPERATORS: Mapping[str, Callable[..., Result]] = {
    "band_part": _band_part,
    "concat": _concat,
    "crop": _crop,
    "depth_to_space": _depth_to_space,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "identity": _identity,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "reshape": _reshape,
    "reverse": _reverse,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "topk": _topk,
    "transpose": _transpose,
}
