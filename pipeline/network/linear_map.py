"""What a module computes, where that is a convolution or a matrix product and nothing else, found by running it.

Who wrote the module does not matter, only which operators it ran: a subclass that pads by itself, one that standardises
its weights, a pair of layers whose outputs are added. Each value on the way is kept as a linear map of the module's
input, in float64, so that what comes out is one kernel and one bias:

* padding, then a convolution: W applied to the padded input
* a factor or a term per channel behind it: diag(s)·W, s·b + t
* a 1 x 1 convolution behind it: V·W, V·b + c (exact, since it reads no border)
* the sum of two: the smaller kernel laid into the middle of the larger one, W + V, b + c
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Padding = tuple[int, int, int, int]
"""Left, right, top, bottom."""

_SAME = frozenset(
    {"clone", "detach", "contiguous", "alias", "dropout", "feature_dropout", "alpha_dropout", "lift_fresh"}
)
_PADS = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Unlike(Exception):
    """The module computes something else; the message says what, as a noun."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """A convolution of two dimensions, or (``kernel`` of two dimensions) a matrix product over the last axis."""

    kernel: Tensor
    """float64 [Cout, Cin / groups, K, K] or [Cout, Cin]."""
    bias: Tensor
    """float64 [Cout]."""
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    padding_mode: str = "zeros"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    alone: bool = True
    """It is what one operator computed of the input, padded or not; False: something was multiplied or added after it."""
    positions: int = 1
    """Places of the output at which the kernel is applied, for one image."""
    macs: int = 0
    """Multiply-accumulates that the module itself spent, for one image."""

    @property
    def merged_macs(self) -> int:
        """What one layer with this kernel spends, for one image."""
        return self.positions * self.kernel.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Input:
    """The module's input, padded so far."""

    padding: Padding = (0, 0, 0, 0)
    mode: str = "zeros"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelMap:
    """One factor and one term per channel: all that a batch norm does in evaluation."""

    scale: Tensor
    """float64 [C]."""
    shift: Tensor
    """float64 [C]."""


Value = LinearMap | ChannelMap | _Input


def linear_map_of(module: nn.Module, given: Tensor) -> LinearMap:
    """What ``module`` computes of ``given`` [N, C, H, W] or [N, …, C] in evaluation. Raises Unlike."""
    linear_map = _follow_module(module, given, norms=False)
    if not isinstance(linear_map, LinearMap):
        raise Unlike("no convolution and no matrix product")
    return linear_map


def channel_map_of(module: nn.Module, given: Tensor) -> ChannelMap:
    """The factors and terms by which ``module`` maps ``given`` [N, C, …] in evaluation. Raises Unlike."""
    channel_map = _follow_module(module, given, norms=True)
    if not isinstance(channel_map, ChannelMap):
        raise Unlike("no map channel by channel")
    return channel_map


def _follow_module(module: nn.Module, given: Tensor, *, norms: bool) -> Value:
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    follower = _Follower(given, norms=norms)
    try:
        with torch.inference_mode(), follower:
            result = module(given)
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(result, Tensor):
        raise Unlike(f"a {type(result).__name__} instead of one tensor")
    value = follower.value_of(result)
    if value is None:
        raise Unlike("a value that does not depend on its input")
    return value


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its subclass hook unannotated
    """Keeps beside every tensor the map that made it of the input; what is not kept is a constant."""

    def __init__(self, given: Tensor, *, norms: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._norms = norms
        self._values: dict[int, Value] = {id(given): _Input()}
        self._alive: list[Any] = [given]

    def value_of(self, tensor: Tensor) -> Value | None:
        """The map that made ``tensor``; None for a constant."""
        return self._values.get(id(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(id(t) in self._values for t in tensors) and any(isinstance(t, Tensor) for t in tree_leaves(result)):
            self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.split("::")[-1]
        in_place = name.endswith("_")
        name = name.rstrip("_")
        rule = _RULES.get(name)
        if rule is None or not isinstance(result, Tensor) or (name == "batch_norm" and not self._norms):
            raise Unlike(f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
        value = rule(self, arguments_by_name(func, args, kwargs), result)
        if in_place and any(
            id(t) != id(result) and _shares_memory(t, result) for t in self._alive if isinstance(t, Tensor)
        ):
            raise Unlike(f"a {name} written into a tensor that is read elsewhere")
        self._alive.append(result)
        self._values[id(result)] = value


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def arguments_by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's arguments under the names of its schema, with what the caller left out at its default."""
    schema = func._schema.arguments
    arguments = dict(zip((a.name for a in schema), args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | arguments | dict(kwargs)


Rule = Callable[[_Follower, dict[str, Any], Tensor], Value]


def _pass_unchanged(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    source = a.get("self", a.get("input"))
    if a.get("train") and a.get("p"):
        raise Unlike("a dropout that is active in evaluation")
    value = at.value_of(source) if isinstance(source, Tensor) else None
    if value is None:
        raise Unlike("a copy of something else")
    return value


def _pad(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    value = at.value_of(a["self"])
    mode = _PADS.get(a.get("mode", "constant"), "")
    fill = a.get("value")
    sides = list(a["pad"]) + [0] * (4 - len(a["pad"]))
    if not isinstance(value, _Input) or not mode or len(sides) != 4 or result.dim() != 4 or fill not in (None, 0, 0.0):
        raise Unlike("a padding that no convolution has")
    if mode != value.mode and any(value.padding):
        raise Unlike("two kinds of padding")
    left, right, top, bottom = (x + y for x, y in zip(value.padding, sides, strict=True))
    return _Input(padding=(left, right, top, bottom), mode=mode)


def _convolve(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    value, weight = at.value_of(a["input"]), a["weight"]
    bias = a.get("bias")
    if value is None or at.value_of(weight) is not None or weight.dim() != 4 or result.dim() != 4:
        raise Unlike(
            "a convolution with weights made of its input" if value is None else "a convolution of other shape"
        )
    if isinstance(bias, Tensor) and at.value_of(bias) is not None:
        raise Unlike("a convolution with a bias made of its input")
    linear_map = LinearMap(
        kernel=weight.detach().double(),
        bias=_bias_or_zero(bias, len(weight)),
        stride=_as_pair(a["stride"]),
        padding=_own_padding(a, weight),
        dilation=_as_pair(a["dilation"]),
        groups=int(a["groups"]),
        positions=math.prod(result.shape[2:]),
        macs=math.prod(result.shape[1:]) * math.prod(weight.shape[1:]),
    )
    return _compose_after(value, linear_map)


def _own_padding(a: Mapping[str, Any], weight: Tensor) -> Padding:
    if a["padding"] == "valid":
        return 0, 0, 0, 0
    if a["padding"] == "same":
        (tall, wide), (high, across) = weight.shape[2:], _as_pair(a["dilation"])
        down, along = high * (tall - 1), across * (wide - 1)
        return along // 2, along - along // 2, down // 2, down - down // 2
    rows, columns = _as_pair(a["padding"])
    return columns, columns, rows, rows


def _compose_after(value: Value, second: LinearMap) -> LinearMap:
    """``second`` applied to what ``value`` is."""
    if isinstance(value, _Input):
        if any(value.padding) and any(second.padding) and value.mode != "zeros":
            raise Unlike("two kinds of padding")
        left, right, top, bottom = (x + y for x, y in zip(value.padding, second.padding, strict=True))
        mode = value.mode if any(value.padding) else "zeros"
        return replace(second, padding=(left, right, top, bottom), padding_mode=mode)
    if isinstance(value, ChannelMap):
        if any(second.padding) or second.groups != 1:
            raise Unlike("a convolution of a scaled input")
        kernel = second.kernel * value.scale.view(1, -1, *[1] * (second.kernel.dim() - 2))
        shift = (second.kernel.flatten(2).sum(2) if second.kernel.dim() == 4 else second.kernel) @ value.shift
        return replace(second, kernel=kernel, bias=second.bias + shift, alone=False)
    return _compose_maps(value, second)


def _compose_maps(first: LinearMap, then: LinearMap) -> LinearMap:
    if first.kernel.dim() == then.kernel.dim() == 2:
        return replace(
            then, kernel=then.kernel @ first.kernel, bias=then.kernel @ first.bias + then.bias, alone=False,
            macs=first.macs + then.macs,
        )  # fmt: skip
    pointwise = then.kernel.dim() == 4 and then.kernel.shape[2:] == (1, 1) and not any(then.padding)
    if not pointwise or then.stride != (1, 1) or first.groups != 1 or then.groups != 1:
        raise Unlike("a convolution after another")
    through = then.kernel.flatten(1)
    kernel = torch.einsum("oc,cihw->oihw", through, first.kernel)
    bias = through @ first.bias + then.bias
    return replace(first, kernel=kernel, bias=bias, alone=False, macs=first.macs + then.macs)


def _multiply_matrix(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    """linear(input, weight, bias), matmul(self, other), mm(self, mat2), addmm(self, mat1, mat2)."""
    source = next(a[name] for name in ("mat1", "input", "self") if name in a)
    weight = a["weight"] if "weight" in a else next(a[name] for name in ("mat2", "other") if name in a).t()
    bias = a.get("bias") if "mat1" not in a else a["self"]
    value = at.value_of(source)
    is_fixed = at.value_of(weight) is None and not (isinstance(bias, Tensor) and at.value_of(bias) is not None)
    if value is None or not is_fixed or weight.dim() != 2 or a.get("beta", 1) != 1 or a.get("alpha", 1) != 1:
        raise Unlike("a matrix product of other shape")
    if isinstance(value, _Input) and any(value.padding):
        raise Unlike("a matrix product of a padded input")
    linear_map = LinearMap(
        kernel=weight.detach().double(),
        bias=_bias_or_zero(bias, len(weight)),
        positions=math.prod(result.shape[1:-1]),
        macs=math.prod(result.shape[1:]) * weight.shape[1],
    )
    return _compose_after(value, linear_map)


def _bias_or_zero(bias: Tensor | None, channels: int) -> Tensor:
    if bias is None:
        return torch.zeros(channels, dtype=torch.float64)
    return bias.detach().double().expand(channels).clone()


def _scale(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    left, right = a["self"], a["other"]
    value = at.value_of(left) if isinstance(left, Tensor) else None
    if value is not None and isinstance(right, Tensor) and at.value_of(right) is not None:
        raise Unlike("a product of two values")
    return _map_value(value or at.value_of(right), result, right if value is not None else left, None)


def _divide(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    value = at.value_of(a["self"])
    if value is None or (isinstance(a["other"], Tensor) and at.value_of(a["other"]) is not None):
        raise Unlike("a quotient of two values")
    if a.get("rounding_mode"):
        raise Unlike("a rounded quotient")
    other = a["other"]
    return _map_value(value, result, 1 / (other.double() if isinstance(other, Tensor) else other), None)


def _add(at: _Follower, a: dict[str, Any], result: Tensor, sign: int = 1) -> Value:
    left, right, factor = a["self"], a["other"], a.get("alpha", 1) * sign
    first = at.value_of(left) if isinstance(left, Tensor) else None
    second = at.value_of(right) if isinstance(right, Tensor) else None
    if first is not None and second is not None:
        return _sum_values(first, _map_value(second, result, factor, None), result)
    if first is not None:
        return _map_value(first, result, None, (right.double() if isinstance(right, Tensor) else right) * factor)
    return _map_value(_map_value(second, result, factor, None), result, None, left)


def _subtract(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    return _add(at, a, result, -1)


def _sum_values(first: Value, second: Value, result: Tensor) -> Value:
    if not (isinstance(first, LinearMap) and isinstance(second, LinearMap)):
        raise Unlike("a sum with its own input")
    if first.kernel.dim() != second.kernel.dim() or (first.stride, first.dilation) != (second.stride, second.dilation):
        raise Unlike("a sum of convolutions of unlike steps")
    if first.groups != second.groups or first.padding_mode != "zeros" or second.padding_mode != "zeros":
        raise Unlike("a sum of convolutions of unlike groups or padding")
    large, small = sorted((first, second), key=lambda m: -m.kernel[0, 0].numel())
    return replace(
        large,
        kernel=large.kernel + _laid_into(small, large),
        bias=large.bias + small.bias,
        alone=False,
        macs=large.macs + small.macs,
    )


def _laid_into(small: LinearMap, large: LinearMap) -> Tensor:
    """The small kernel as one of the large one's size that computes the same with the large one's padding."""
    if small.kernel.shape == large.kernel.shape and small.padding == large.padding:
        return small.kernel
    if large.dilation != (1, 1) or large.kernel.dim() != 4:
        raise Unlike("a sum of convolutions of unlike size")
    left, right, top, bottom = (x - y for x, y in zip(large.padding, small.padding, strict=True))
    spare = [x - y for x, y in zip(large.kernel.shape[2:], small.kernel.shape[2:], strict=True)]
    after_x, after_y = spare[1] - left, spare[0] - top
    if min(left, top, after_x, after_y) < 0 or max(right, bottom) < 0:
        raise Unlike("a sum of convolutions of unlike alignment")
    return nn.functional.pad(small.kernel, (left, after_x, top, after_y))


def _normalise(at: _Follower, a: dict[str, Any], result: Tensor) -> Value:
    if a["training"] or a["running_mean"] is None:
        raise Unlike("a batch norm over its own batch")
    scale = 1 / torch.sqrt(a["running_var"].double() + a["eps"])
    if a["weight"] is not None:
        scale = scale * a["weight"].double()
    shift = -a["running_mean"].double() * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].double()
    return _apply_affine(at.value_of(a["input"]), scale.detach(), shift.detach(), result)


def _map_value(value: Value | None, result: Tensor, factor: Any, term: Any) -> Value:
    """``value`` times ``factor`` plus ``term``, each a number, a tensor with at most a value a channel, or None."""
    matrix = isinstance(value, LinearMap) and value.kernel.dim() == 2
    channels = result.shape[-1 if matrix else 1]
    scale = _per_channel(1.0 if factor is None else factor, result, channels, last=matrix)
    shift = _per_channel(0.0 if term is None else term, result, channels, last=matrix)
    return _apply_affine(value, scale, shift, result)


def _apply_affine(value: Value | None, scale: Tensor, shift: Tensor, result: Tensor) -> Value:
    if isinstance(value, LinearMap):
        kernel = value.kernel * scale.view(-1, *[1] * (value.kernel.dim() - 1))
        same = bool((scale == 1).all()) and not bool(shift.any())
        return replace(value, kernel=kernel, bias=value.bias * scale + shift, alone=value.alone and same)
    if isinstance(value, ChannelMap):
        return ChannelMap(scale=value.scale * scale, shift=value.shift * scale + shift)
    if isinstance(value, _Input) and not any(value.padding):
        return ChannelMap(scale=scale, shift=shift)
    raise Unlike("a scaled padding")


def _per_channel(value: Any, result: Tensor, channels: int, *, last: bool) -> Tensor:
    """float64 [channels] of a number or of a tensor that ``result`` was broadcast with."""
    if not isinstance(value, Tensor):
        return torch.full((channels,), float(value), dtype=torch.float64)
    value = value.detach().double()
    shape = [1] * (result.dim() - value.dim()) + list(value.shape)
    axis = result.dim() - 1 if last else 1
    if any(size != 1 for place, size in enumerate(shape) if place != axis):
        raise Unlike("a factor or a term that differs from place to place")
    per_channel: Tensor = value.reshape(-1).expand(channels).clone()
    return per_channel


def _as_pair(value: Sequence[int]) -> tuple[int, int]:
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _pass_unchanged),
    "pad": _pad,
    "constant_pad_nd": _pad,
    "conv2d": _convolve,
    "linear": _multiply_matrix,
    "matmul": _multiply_matrix,
    "mm": _multiply_matrix,
    "addmm": _multiply_matrix,
    "mul": _scale,
    "multiply": _scale,
    "div": _divide,
    "add": _add,
    "sub": _subtract,
    "batch_norm": _normalise,
}
