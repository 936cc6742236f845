"""Gradients of convolutions with few channels a group, trained in bfloat16 on a processor, computed in float32.

oneDNN as torch 2.13.0 has it computes the forward pass of such convolutions fast in bfloat16, but neither gradient: on an Intel
Xeon with AMX a depthwise 5 x 5 convolution of 144 channels takes 178 ms for its input's gradient where float32 takes 7, and 171 ms
for its weight's where float32 takes 23 (stride 2, 16 maps of 56 x 56). With 8 channels a group bfloat16 is the faster again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgewise.stages.training.settings import ComputePrecision, resolve_precision

_CALLED = (torch.conv2d, torch.ops.aten.conv2d.default)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_FEW = 8


def float_gradients(precision: ComputePrecision, device: str) -> AbstractContextManager[Any]:
    """``FloatGradients`` where a training in that precision on that device is the slower without."""
    return (
        FloatGradients() if device == "cpu" and resolve_precision(precision, device) == "bf16-mixed" else nullcontext()
    )


class FloatGradients(TorchFunctionMode):
    """While open, such convolutions on a processor, called under ``torch.autocast``, get their gradients in float32.

    Their weights' gradients are so no longer rounded to bfloat16 either.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What ``function`` answers, or the same convolution with gradients of its own."""
        given = kwargs or {}
        if function in _CALLED and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            settings = dict(zip(_NAMES, args, strict=False)) | dict(given)
            if _is_slow(**settings):
                return _convolve(**settings)
        return function(*args, **given)


def _is_slow(input: Tensor, weight: Tensor, groups: int = 1, padding: Any = 0, **_: Any) -> bool:
    return (
        groups > 1
        and input.dim() == 4
        and input.device.type == "cpu"
        and weight.shape[1] < _FEW
        and weight.shape[2:].numel() > 1
        and not isinstance(padding, str)
    )


def _convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    narrow = torch.get_autocast_dtype("cpu")
    result: Tensor = _Convolution.apply(
        input.to(narrow), weight, bias, (_pair(stride), _pair(padding), _pair(dilation)), groups
    )  # type: ignore[no-untyped-call]
    return result


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are those of float32."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[list[int], ...], groups: int
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry, ctx.groups, ctx.biases = geometry, groups, None if bias is None else list(bias.shape)
        stride, padding, dilation = geometry
        answer: Tensor = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], ctx.biases is not None and ctx.needs_input_grad[2]]
        for_input, *others = torch.ops.aten.convolution_backward.default(
            gradients[0].float(), input.float(), weight.float(), ctx.biases, *ctx.geometry, False, [0, 0], ctx.groups,
            wanted,
        )  # fmt: skip
        return None if for_input is None else for_input.to(input.dtype), *others, None, None
