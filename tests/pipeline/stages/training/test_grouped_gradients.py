"""Convolutions of few channels a group get float32's gradients, and answer as before; every other is left alone."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from edgewise.stages.training.execution import autocast
from edgewise.stages.training.grouped_gradients import FloatGradients, float_gradients

SLOW = {
    "depthwise": lambda: nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
    "two outputs a channel": lambda: nn.Conv2d(16, 32, 5, padding=2, groups=16, bias=False),
    "four channels a group": lambda: nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=4),
    "a row": lambda: nn.Conv2d(16, 16, (1, 5), stride=(1, 2), padding=(0, 2), groups=16),
}
LEFT = {
    "dense": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "eight channels a group": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=2),
    "pointwise": lambda: nn.Conv2d(16, 16, 1, groups=16),
    "same padding": lambda: nn.Conv2d(16, 16, 3, padding="same", groups=16),
}


def gradients(layer: nn.Conv2d, *, narrow: bool, float32: bool) -> list[Tensor]:
    """The answer, and the gradients of input, weight and bias."""
    images = torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer.zero_grad()
    with ExitStack() as stack:
        if narrow:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if float32:
            stack.enter_context(FloatGradients())
        answer = layer(images)
    answer.float().sin().sum().backward()
    learned = [parameter.grad for parameter in layer.parameters()]
    assert images.grad is not None
    return [answer.detach(), images.grad, *[grad for grad in learned if grad is not None]]


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.float() - right.float()).norm() / right.float().norm())


@pytest.mark.parametrize("name", SLOW)
def test_gradients_are_those_of_float32(name: str) -> None:
    torch.manual_seed(0)
    layer = SLOW[name]()
    whole, narrow, mended = (gradients(layer, narrow=kind > 0, float32=kind > 1) for kind in range(3))
    assert torch.equal(narrow[0], mended[0]) and mended[0].dtype == torch.bfloat16
    for exact, ours, theirs in zip(whole[1:], mended[1:], narrow[1:], strict=True):
        assert ours.shape == exact.shape and ours.dtype == exact.dtype == torch.float32
        assert distance(ours, exact) < min(0.004, 1.01 * distance(theirs, exact))


@pytest.mark.parametrize("name", LEFT)
def test_what_is_fast_in_bfloat16_is_left_to_it(name: str) -> None:
    with FloatGradients(), torch.autocast("cpu", torch.bfloat16):
        answer = LEFT[name]()(torch.randn(2, 16, 9, 9))
    assert "Convolution" in type(answer.grad_fn).__name__ and not hasattr(answer.grad_fn, "geometry")


def test_a_captured_graph_s_convolution_counts_too() -> None:
    layer = SLOW["depthwise"]().eval()
    graph = torch.export.export(layer, (torch.randn(2, 16, 9, 9),)).module()
    with FloatGradients(), torch.autocast("cpu", torch.bfloat16):
        answer = graph(torch.randn(2, 16, 9, 9))
    assert hasattr(answer.grad_fn, "geometry")


def test_without_gradients_or_mixed_precision_nothing_changes() -> None:
    layer, images = SLOW["depthwise"](), torch.randn(2, 16, 9, 9)
    with FloatGradients():
        assert not hasattr(layer(images).grad_fn, "geometry")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(images).grad_fn is None


def test_every_mixed_training_on_a_processor_has_them() -> None:
    layer, images = SLOW["depthwise"](), torch.randn(2, 16, 9, 9)
    with autocast("bf16-mixed", "cpu"):
        assert hasattr(layer(images).grad_fn, "geometry")
    with autocast("32-true", "cpu"):
        assert not hasattr(layer(images).grad_fn, "geometry")
    assert not isinstance(float_gradients("bf16-mixed", "cuda"), FloatGradients)


def test_a_frozen_weight_gets_no_gradient() -> None:
    layer = SLOW["depthwise"]()
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 16, 9, 9, requires_grad=True)
    with autocast("bf16-mixed", "cpu"):
        layer(images).float().sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and images.grad is not None
