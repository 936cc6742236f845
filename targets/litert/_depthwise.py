"""Depthwise convolutions with large kernels, as sums of such with parts of the kernel.

XNNPACK, which the runtime's delegate computes with, has depthwise kernels for up to 25 weights a channel; a larger one falls
to products of matrices, one a channel: a 7 × 7 convolution of ConvNeXt takes five times as long in float as three of its parts,
in integers more than twenty times (LOG.md). The parts' sums are floats in an int8 file as well, between the integers that the
program has before and behind, so that it computes what the program says.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch.fx import Graph, Node

from edgewise.targets._plain_operators import CONVOLUTION, read_arguments
from edgewise.targets._rewrite import insert_call

_MOST_WEIGHTS = 25
"""Of one channel's kernel, for which the delegate has a depthwise kernel (XNNPACK's f32-dwconv and qs8-dwconv, LiteRT 2.3.0)."""

_aten = torch.ops.aten

Span = tuple[int, int]
"""From here on, and up to there."""


def split_depthwise(graph: Graph, node: Node) -> Node | None:
    """A depthwise convolution of more weights than the delegate's kernels take, as the sum of its parts."""
    x, weight, bias, stride, padding, dilation, groups = read_arguments(node, *CONVOLUTION)
    _, depth, *kernel = weight.meta["val"].shape
    is_depthwise = depth == 1 and groups == x.meta["val"].shape[1] > 1  # of one channel it is a usual convolution, too
    if not is_depthwise or kernel[0] * kernel[1] <= _MOST_WEIGHTS:
        return None
    stride, dilation = _pair(stride, 1), _pair(dilation, 1)
    padded = _pad_image(graph, x, _read_padding(padding, kernel, dilation))
    result: Node | None = None
    for rows, columns in product(*_choose_spans(*kernel)):
        spans = tuple(
            _seen(span, side, step, apart)
            for span, side, step, apart in zip(
                (rows, columns), node.meta["val"].shape[2:], stride, dilation, strict=True
            )
        )
        part = insert_call(
            graph, _aten.conv2d.default, _cut(graph, padded, spans), _cut(graph, weight, (rows, columns)),
            None if result is not None else bias, list(stride), [0, 0], list(dilation), groups,
        )  # fmt: skip
        result = part if result is None else insert_call(graph, _aten.add.Tensor, result, part)
    return result


def _choose_spans(height: int, width: int) -> tuple[list[Span], list[Span]]:
    """The rows and the columns of a kernel's parts: as many whole rows as a part can take, or a piece of one row."""
    columns = -(-width // -(-width // _MOST_WEIGHTS))  # pieces of about one width
    return _spans(height, max(1, _MOST_WEIGHTS // columns)), _spans(width, columns)


def _spans(whole: int, part: int) -> list[Span]:
    return [(start, min(start + part, whole)) for start in range(0, whole, part)]


def _seen(span: Span, side: int, stride: int, dilation: int) -> Span:
    """What of the padded image's side a part of the kernel sees, for a result of ``side`` pixels."""
    first, last = span
    return first * dilation, (last - 1) * dilation + (side - 1) * stride + 1


def _cut(graph: Graph, value: Node, spans: tuple[Span, ...]) -> Node:
    """Of [N, C, H, W] the rows and columns in ``spans``."""
    for axis, (start, end) in enumerate(spans, 2):
        if end - start < value.meta["val"].shape[axis]:
            value = insert_call(graph, _aten.slice.Tensor, value, axis, start, end)
    return value


def _pad_image(graph: Graph, x: Node, amounts: list[int]) -> Node:
    return insert_call(graph, _aten.constant_pad_nd.default, x, amounts, 0.0) if any(amounts) else x


def _read_padding(padding: Any, kernel: list[int], dilation: tuple[int, int]) -> list[int]:
    """Pixels before and behind, columns first, as ``torch.nn.functional.pad`` takes them."""
    if padding == "same":
        total = [(side - 1) * apart for side, apart in zip(kernel, dilation, strict=True)]
        rows, columns = ((amount // 2, amount - amount // 2) for amount in total)
    else:
        height, width = _pair(None if padding == "valid" else padding, 0)
        rows, columns = (height, height), (width, width)
    return [*columns, *rows]


def _pair(given: Any, usual: int) -> tuple[int, int]:
    """What is given for height and width, as one number, one or two in a list, or not at all."""
    sides = [usual] if given is None else [given] if isinstance(given, int) else list(given)
    return (sides[0], sides[-1])
