"""Fake quantizers that cost little: rounding in training to exactly the numbers that conversion gives.

torch's own operators round one element at a time on a CPU and keep a mask for the gradient, which makes them dearer than
a convolution of a small network. Here rounding is four vectorised passes in place and the gradient one; where a GPU is,
torch's operator is one kernel and is used. Whether to observe and whether to round are Python values beside the
buffers that hold them: reading a buffer would stop a GPU at every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantize, FixedQParamsFakeQuantize

_aten = torch.ops.aten


class _Switches(FakeQuantize):
    """A fake quantizer whose switches are read without touching a tensor."""

    observing = True
    rounding = True

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the ranges of what passes, or leave them."""
        super().enable_observer(enabled)
        self.observing = bool(enabled)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round what passes, or let it through."""
        super().enable_fake_quant(enabled)
        self.rounding = bool(enabled)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.observing, self.rounding = bool(self.observer_enabled[0]), bool(self.fake_quant_enabled[0])

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point in use, not a second computation from the ranges."""
        return self.scale, self.zero_point


class PerChannelWeightFakeQuantize(_Switches):
    """Rounds weights to the grid of their present magnitude: scale = max|w| / quant_max for each output channel.

    The stock fused operator divides negative weights by quant_max + 1 in training and by quant_max at conversion, and
    its moving average lags behind the weights; here training and conversion see the same scale at every step, one that
    float16 can hold. Weights go to their nearest integers, or to those that ``choose`` was given.
    """

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 - the name torchao's callers may pass
        """Weights of any shape -> the same shape, rounded; the gradient passes straight through."""
        with torch.no_grad():
            scale = self.scale_of(X)
            if self.scale.shape != scale.shape:
                self.scale.resize_(scale.shape)
                self.zero_point.resize_(scale.shape).zero_()
            self.scale.copy_(scale)
        if not self.rounding:
            return X
        along = self._along_channels(scale, X)
        if self.integers is not None:
            chosen: Tensor = self.integers.to(X.dtype) * along.to(X.dtype)
            return chosen
        rounded: Tensor = _RoundedWeights.apply(X, along, self.quant_min, self.quant_max)  # type: ignore[no-untyped-call]
        return rounded

    def scale_of(self, weights: Tensor) -> Tensor:
        """[channels]: what the largest magnitude of each channel of ``weights`` gives."""
        axes = [axis for axis in range(weights.dim()) if axis != self.ch_axis]
        magnitude = weights.detach().abs().float().amax(axes) if axes else weights.detach().abs().float()
        scale: Tensor = (magnitude / self.quant_max).clamp_min(self.activation_post_process.eps)
        return scale.half().float()

    @property
    def integers(self) -> Tensor | None:
        """What the weights are rounded to, int8 in their shape; None: to their nearest."""
        integers: Tensor | None = self._buffers.get("chosen")
        return integers

    def choose(self, integers: Tensor) -> None:
        """Round to ``integers`` from now on, int8 in the weights' shape, one of each channel at the end of the range."""
        self.register_buffer("chosen", integers)

    def _along_channels(self, scale: Tensor, weights: Tensor) -> Tensor:
        return scale.view([-1 if axis == self.ch_axis else 1 for axis in range(weights.dim())])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if (integers := state_dict.get(f"{prefix}chosen")) is not None:
            self.choose(torch.empty_like(integers))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ActivationFakeQuantize(_Switches):
    """Rounds activations with one scale, from a moving average of their smallest and largest value.

    A frozen scale stays as it is, and can be set to one that every runtime holds. ``learn`` makes it a parameter
    (learned step size, Esser et al. 2020, arXiv 1902.08153), until ``settle``.
    """

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 - the name torchao's callers may pass
        """Activations of any shape -> the same shape, rounded; the gradient passes within the range."""
        if self.observing:
            self.observe(*torch.aminmax(_in_memory_order(X.detach())))
        if not self.rounding:
            return X
        if hasattr(self, "step"):
            low, high = self._ends()
            rounded: Tensor = _LearnedStep.apply(X, self.step, low, high)  # type: ignore[no-untyped-call]
            return rounded
        return _round_straight_through(X, self.scale, self.zero_point, self.quant_min, self.quant_max)

    @torch.no_grad()
    def observe(self, low: Tensor, high: Tensor) -> None:
        """Move the range, scalars, towards ``low`` … ``high`` by the observer's averaging constant; at first all the way."""
        observer = self.activation_post_process
        for limit, value in ((observer.min_val, low), (observer.max_val, high)):
            near = torch.lerp(limit, value.to(limit.dtype), observer.averaging_constant)
            limit.copy_(torch.where(limit.isfinite(), near, value))
        self.use_range(observer.min_val, observer.max_val)

    @torch.no_grad()
    def use_range(self, low: Tensor, high: Tensor) -> None:
        """Scale and zero point for values from ``low`` to ``high``, scalars; 0 is always among them."""
        low, high = low.clamp_max(0), high.clamp_min(0)
        eps = self.activation_post_process.eps
        if self.qscheme == torch.per_tensor_symmetric:
            self.scale.copy_((torch.maximum(-low, high) / self.quant_max).clamp_min(eps))
            self.zero_point.zero_()
            return
        self.scale.copy_(((high - low) / (self.quant_max - self.quant_min)).clamp_min(eps))
        zero_point = self.quant_min - (low / self.scale).round()
        self.zero_point.copy_(zero_point.clamp(self.quant_min, self.quant_max))

    def learn(self) -> None:
        """Let training move the scale from where it is; the zero point stays."""
        self.disable_observer()
        self.step = nn.Parameter(self.scale.detach().clone())

    def settle(self) -> None:
        """The scale that was learned, from now on fixed."""
        if hasattr(self, "step"):
            with torch.no_grad():
                self.scale.copy_(self.step.abs().clamp_min(self.activation_post_process.eps))
            del self.step

    def _ends(self) -> tuple[int, int]:
        zero_point = int(self.zero_point)
        return self.quant_min - zero_point, self.quant_max - zero_point


class FixedFakeQuantize(FixedQParamsFakeQuantize):
    """Rounds to a fixed scale and zero point."""

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 - the name torchao's callers may pass
        """Activations of any shape -> the same shape, rounded; the gradient passes within the range."""
        return _round_straight_through(X, self.scale, self.zero_point, self.quant_min, self.quant_max)


def _round_straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    if x.device.type != "cpu":
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, lowest, highest)
    offset = int(zero_point)
    rounded: Tensor = _Rounded.apply(x, float(scale), lowest - offset, highest - offset)  # type: ignore[no-untyped-call]
    return rounded


def _round_to_grid(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """clip(round(x / step), low, high) * step, in float32, returned in the type of ``x``."""
    return (x.float() * (1 / step)).round_().clamp_(low, high).mul_(step).to(x.dtype)


def _clip_gradient(gradient: Tensor, x: Tensor, step: float, low: int, high: int) -> Tensor:
    """The gradient where rounding ``x`` did not clip."""
    inner_gradient: Tensor = _aten.hardtanh_backward(gradient, x, (low - 0.5) * step, (high + 0.5) * step)
    return inner_gradient


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid = step, low, high
        return _round_to_grid(x, step, low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _clip_gradient(gradients[0], *ctx.saved_tensors, *ctx.grid), None, None, None


class _LearnedStep(torch.autograd.Function):
    """The step's gradient: what rounding added, x's own clipped value beyond the ends (Esser et al., equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        size = float(step.abs())
        y = _round_to_grid(x, size, low, high)
        ctx.save_for_backward(x, y)
        ctx.grid = size, low, high
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (x, y), (step, low, high) = gradients, ctx.saved_tensors, ctx.grid
        inner_gradient = _clip_gradient(gradient, x, step, low, high)
        step_gradient = ((gradient * y).sum() - (inner_gradient * x).sum()) / step
        return inner_gradient, (step_gradient * (x.numel() * max(high, 1)) ** -0.5).reshape(1), None, None


class _RoundedWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        return (weight.float() * (1 / scale)).round_().clamp_(low, high).mul_(scale).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


def _in_memory_order(x: Tensor) -> Tensor:
    """The same values as a contiguous tensor where that costs nothing: reductions are several times faster then."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return x
