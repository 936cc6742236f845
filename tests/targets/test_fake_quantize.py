"""Lean fake quantizers give torch's own numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from edgewise.targets._fake_quantize import ActivationFakeQuantize, PerChannelWeightFakeQuantize


def activation(symmetric: bool = False) -> ActivationFakeQuantize:
    return ActivationFakeQuantize(
        observer=MovingAverageMinMaxObserver, quant_min=-127 if symmetric else -128, quant_max=127, dtype=torch.int8,
        qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine, eps=2.0**-12,
    )  # fmt: skip


def images(shape: tuple[int, ...] = (4, 8, 5, 7)) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rounding_and_its_gradient_are_torchs(symmetric: bool, layout: torch.memory_format) -> None:
    lean = activation(symmetric)
    lean.use_range(torch.tensor(-1.0), torch.tensor(4.0))
    lean.disable_observer()
    ours = images().contiguous(memory_format=layout).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = lean(ours)
    wanted = torch.fake_quantize_per_tensor_affine(
        theirs, float(lean.scale), int(lean.zero_point), lean.quant_min, lean.quant_max
    )
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=layout)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad) and 0 < int((ours.grad == 0).sum()) < ours.numel()  # type: ignore[arg-type, union-attr]


def test_the_range_starts_at_what_is_seen_and_then_follows_it() -> None:
    lean = activation()
    lean(torch.tensor([-1.0, 4.0]))
    assert float(lean.scale) == pytest.approx(5 / 255) and int(lean.zero_point) == -128 + 51
    lean(torch.tensor([0.0, 14.0]))  # 1 % of the way: -0.99 ... 4.1
    assert float(lean.scale) == pytest.approx(5.09 / 255)
    before = lean.scale.clone()
    lean.disable_observer()
    lean(torch.tensor([-100.0, 100.0]))
    assert torch.equal(lean.scale, before)


def test_zero_is_always_among_the_values() -> None:
    lean = activation()
    lean(torch.tensor([2.0, 5.1]))
    assert int(lean.zero_point) == -128 and float(lean.scale) == pytest.approx(5.1 / 255)
    lean = activation()
    lean(torch.tensor([-5.1, -2.0]))
    assert int(lean.zero_point) == 127 and float(lean.scale) == pytest.approx(5.1 / 255)


def test_switches_survive_a_reload() -> None:
    frozen, fresh = activation(), activation()
    frozen(images())
    frozen.disable_observer()
    frozen.disable_fake_quant()
    fresh.load_state_dict(frozen.state_dict())
    assert not fresh.observing and not fresh.rounding
    assert torch.equal(fresh(images()), images()) and torch.equal(fresh.scale, frozen.scale)


def test_a_learned_step_has_the_published_gradient() -> None:
    lean = activation()
    lean.use_range(torch.tensor(0.0), torch.tensor(255.0))  # step 1, levels 0 ... 255
    lean.learn()
    x = torch.tensor([0.3, 1.6, 300.0, -2.0], requires_grad=True)
    lean(x).sum().backward()
    # inside: rounded minus the value; above: the highest level; below: the lowest
    expected = (-0.3 + 0.4 + 255 + 0) / (4 * 255) ** 0.5
    assert lean.step.grad is not None and float(lean.step.grad) == pytest.approx(expected, rel=1e-4)
    assert x.grad is not None and x.grad.tolist() == [1, 1, 0, 0]
    with torch.no_grad():
        lean.step.mul_(0.5)
    lean.settle()
    assert float(lean.scale) == 0.5 and "step" not in dict(lean.named_parameters())


def test_half_precision_is_rounded_in_full_precision() -> None:
    lean = activation()
    lean.use_range(torch.tensor(-1.0), torch.tensor(4.0))
    lean.disable_observer()
    x = images().bfloat16()
    found = lean(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, lean(x.float()).bfloat16())


def test_weights_round_as_torch_rounds_them() -> None:
    lean = PerChannelWeightFakeQuantize(
        observer=PerChannelMinMaxObserver, quant_min=-63, quant_max=63, dtype=torch.int8,
        qscheme=torch.per_channel_symmetric, ch_axis=0, eps=2.0**-14,
    )  # fmt: skip
    weight = images((6, 4, 3, 3))
    found = lean(weight)
    wanted = torch.fake_quantize_per_channel_affine(weight, lean.scale, lean.zero_point, 0, -63, 63)
    assert torch.equal(found, wanted) and torch.equal(lean.scale, lean.scale.half().float())
