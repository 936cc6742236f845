"""Multiply-accumulates of one operator, by the convention of the field."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor


def multiply_accumulates(func: Any, args: tuple[Any, ...], result: object) -> int:
    """MACs of the ATen operator ``func`` called with ``args``; 0 for what is no convolution and no matrix product.

    The convention is that of fvcore's ``FlopCountAnalysis`` (its "flop" is one fused multiply-add) and of the
    multiply-adds printed in the architectures' papers: biases, batch norm, activations, pooling and additions are not
    counted. ResNet-50 at 224×224 is 4.09·10⁹ by it.
    """
    formula = _FORMULAS.get(func._schema.name.removeprefix("aten::"))
    return formula(args, result) if formula else 0


def _convolution_macs(args: tuple[Any, ...], result: Any) -> int:
    """One use of every weight per output position; transposed, per input position. Groups are in the weight's shape."""
    image, weight, transposed = args[0], args[1], args[6]
    positions = image if transposed else result
    spatial = weight.dim() - 2
    batch = prod(positions.shape[:-spatial]) // positions.shape[-spatial - 1]
    return int(batch * prod(positions.shape[-spatial:]) * weight.numel())


def _product_macs(left: Tensor, right: Tensor) -> int:
    """[..., m, k] times [..., k, n]; a vector is a matrix of one column."""
    return int(left.numel() * (right.shape[-1] if right.dim() > 1 else 1))


def _attention_macs(args: tuple[Any, ...], result: object) -> int:
    """Scores [.., L, S] = Q·Kᵀ, then scores·V, over every query head."""
    query, key, value = args[:3]
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    return int(scores * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "convolution": _convolution_macs,
    "_convolution": _convolution_macs,
    "convolution_overrideable": _convolution_macs,
    "mm": lambda args, _: _product_macs(args[0], args[1]),
    "bmm": lambda args, _: _product_macs(args[0], args[1]),
    "mv": lambda args, _: _product_macs(args[0], args[1]),
    "dot": lambda args, _: _product_macs(args[0], args[1]),
    "addmm": lambda args, _: _product_macs(args[1], args[2]),
    "addmv": lambda args, _: _product_macs(args[1], args[2]),
    "baddbmm": lambda args, _: _product_macs(args[1], args[2]),
    "addbmm": lambda args, _: _product_macs(args[1], args[2]),
    "_scaled_dot_product_flash_attention": _attention_macs,
    "_scaled_dot_product_flash_attention_for_cpu": _attention_macs,
    "_scaled_dot_product_efficient_attention": _attention_macs,
    "_scaled_dot_product_cudnn_attention": _attention_macs,
}
