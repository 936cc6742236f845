"""MIL's element-wise operators, activations and reductions in torch; parameter names and defaults are MIL's own.

Source: the operator reference of Apple's coremltools, ``converters.mil.mil.ops.defs`` (iOS 15 to 18).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Number = bool | int | float


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor | Number) -> Tensor:
        return function(torch.as_tensor(x))

    return apply


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor | Number, y: Tensor | Number) -> Tensor:
        if isinstance(x, Tensor):
            return function(x, y if isinstance(y, Tensor) else torch.as_tensor(y, dtype=x.dtype))
        return function(torch.as_tensor(x, dtype=y.dtype if isinstance(y, Tensor) else None), torch.as_tensor(y))

    return apply


def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def _threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


_CAST = {
    "fp16": torch.float32,  # rounded by the evaluator, which keeps float16 values in float32 tensors
    "fp32": torch.float32,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def _cast(x: Tensor | Number, dtype: str) -> Tensor:
    return torch.as_tensor(x).to(_CAST[dtype])


def _select(cond: Tensor, a: Tensor | Number, b: Tensor | Number) -> Tensor:
    return torch.where(torch.as_tensor(cond), torch.as_tensor(a), torch.as_tensor(b))


def _clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


def _elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def _fill_like(ref_tensor: Tensor, value: Number = 0.0) -> Tensor:
    return torch.full_like(ref_tensor, value)


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    return x * torch.sigmoid(1.702 * x)


def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(x, alpha)


def _linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha.reshape(-1, *[1] * (x.dim() - 2)) * x)


def _scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x >= alpha, x, 0)


def _reduction(function: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Callable[..., Tensor]:
    """``function(x, axes)`` keeps the reduced axes as 1; MIL removes them unless ``keep_dims``."""

    def apply(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        dims = tuple(range(x.dim())) if axes is None else tuple(axis % x.dim() for axis in axes)
        result = function(x, dims)
        return result if keep_dims else result.reshape([s for i, s in enumerate(result.shape) if i not in dims])

    return apply


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    sequence = x.flip(axis) if reverse else x
    sums = sequence.cumsum(axis) - (sequence if exclusive else 0)
    return sums.flip(axis) if reverse else sums


def _product(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


def _argument(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        return function(x, axis, keepdim=keep_dims).to(_CAST[output_dtype])

    return apply


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "add": _binary(operator.add),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "cast": _cast,
    "ceil": _unary(torch.ceil),
    "clamped_relu": _clamped_relu,
    "clip": _clip,
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "cumsum": _cumsum,
    "elu": _elu,
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "fill_like": _fill_like,
    "floor": _unary(torch.floor),
    "floor_div": _binary(torch.floor_divide),
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "inverse": _inverse,
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "linear_activation": _linear_activation,
    "log": _log,
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(operator.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "prelu": _prelu,
    "real_div": _binary(operator.truediv),
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    "reduce_l1_norm": _reduction(lambda x, axes: x.abs().sum(axes, keepdim=True)),
    "reduce_l2_norm": _reduction(lambda x, axes: x.square().sum(axes, keepdim=True).sqrt()),
    "reduce_log_sum_exp": _reduction(lambda x, axes: x.logsumexp(axes, keepdim=True)),
    "reduce_max": _reduction(lambda x, axes: x.amax(axes, keepdim=True)),
    "reduce_mean": _reduction(lambda x, axes: x.mean(axes, keepdim=True)),
    "reduce_min": _reduction(lambda x, axes: x.amin(axes, keepdim=True)),
    "reduce_prod": _reduction(_product),
    "reduce_sum": _reduction(lambda x, axes: x.sum(axes, keepdim=True)),
    "reduce_sum_square": _reduction(lambda x, axes: x.square().sum(axes, keepdim=True)),
    "relu": _unary(torch.relu),
    "relu6": _unary(functional.relu6),
    "round": _unary(torch.round),
    "rsqrt": _rsqrt,
    "scaled_tanh": _scaled_tanh,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": _sigmoid_hard,
    "sign": _unary(torch.sign),
    "silu": _unary(functional.silu),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "softmax": _softmax,
    "softplus": _unary(functional.softplus),
    "softsign": _unary(functional.softsign),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(operator.sub),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "threshold": _threshold,
    "thresholded_relu": _thresholded_relu,
}
