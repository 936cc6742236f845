"""Layers with ways of their own become plain ones that answer the same; what is plain, or would be dearer, stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils import weight_norm as weight_norm_by_hook
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from edgewise.models._layers import SeparableConv
from edgewise.network import surgery
from edgewise.network.plain_layers import is_plain, with_plain_layers

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


class SamePadded(nn.Conv2d):
    """As large an output as TensorFlow would give."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            spare = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [spare // 2, spare - spare // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


class LowRank(nn.Module):
    """A convolution and a low-rank term beside it (Hu et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.b(self.a(self.drop(x))) * 0.5
        return y


class Masked(nn.Linear):
    """A linear layer that multiplies its weight by a mask."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.get_buffer("mask"), self.bias)


def pruned() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


KINDS: dict[str, Callable[[], nn.Module]] = {
    "same padding": lambda: SamePadded(3, 4, 3, stride=2),
    "same padding, depthwise, even kernel": lambda: SamePadded(3, 6, (4, 3), groups=3, bias=False),
    "standardised": lambda: Standardised(3, 4, 3, padding=1, stride=2),
    "reflected": lambda: type("Mine", (nn.Conv2d,), {})(3, 4, 3, padding=1, padding_mode="reflect"),
    "low rank": LowRank,
    "weight norm": lambda: weight_norm(nn.Conv2d(3, 4, 3)),
    "weight norm by a hook": lambda: weight_norm_by_hook(nn.Conv2d(3, 4, 3)),
    "spectral norm": lambda: spectral_norm(nn.Conv2d(3, 4, 3, dilation=2)),
    "pruned by a mask": pruned,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_a_plain_layer_with_the_same_answers(kind: str) -> None:
    model = nn.Sequential(KINDS[kind](), nn.ReLU()).eval()
    plain = with_plain_layers(model, IMAGES)
    assert list(plain.taken) == ["0"] and not plain.left
    layers = [m for m in plain.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 1 and is_plain(layers[0])
    with torch.no_grad():
        torch.testing.assert_close(plain.model(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_masked_linear_layer() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Masked()).eval()
    plain = with_plain_layers(model, IMAGES)
    assert type(plain.model[2]) is nn.Linear and not plain.model[2].weight[:, 1].any()


def test_it_is_rebuilt_from_its_history() -> None:
    model = nn.Sequential(SamePadded(3, 4, 3, stride=2, bias=False)).eval()
    plain = with_plain_layers(model, torch.randn(1, 3, 8, 8)).model
    (operation,) = surgery.history(plain)
    again = surgery.apply(
        nn.Sequential(SamePadded(3, 4, 3, stride=2, bias=False)),
        surgery.Replace(**json.loads(json.dumps(asdict(operation)))),
    )
    again.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == ["0.1.weight"]
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(again.eval()(images), model(images))
    assert type(model[0]) is SamePadded


def test_what_is_plain_stays_itself() -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    plain = with_plain_layers(model, IMAGES)
    assert plain.model is model and not plain.taken and not plain.left


def test_two_cheap_convolutions_are_not_merged_into_a_dear_one() -> None:
    model = nn.Sequential(
        SeparableConv(3, 8, (3, 3), bias=False), nn.Sequential(nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1))
    )
    assert with_plain_layers(model.eval(), IMAGES).model is model


def test_a_batch_norm_stays_for_folding() -> None:
    model = nn.Sequential(nn.Sequential(SamePadded(3, 4, 3), nn.BatchNorm2d(4))).eval()
    plain = with_plain_layers(model, IMAGES)
    assert list(plain.taken) == ["0.0"] and isinstance(plain.model[0][1], nn.BatchNorm2d)


class Gated(nn.Conv2d):
    """No convolution: its output is multiplied by what it is given, and in training by a factor too."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * x.mean((1, 2, 3), keepdim=True)
        return y * self.factor if self.training else y


def test_a_layer_that_computes_more_is_left_and_told() -> None:
    plain = with_plain_layers(nn.Sequential(Gated(3, 4, 3)).eval(), IMAGES)
    assert plain.left == {"0": "Gated, left as it is: it computes a mean"}
    assert plain.sentences() == ["0: Gated, left as it is: it computes a mean"]


class AtTwoSizes(nn.Module):
    """One same-padding layer, called on an image and on a smaller one: no one padding serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = SamePadded(3, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).mean((2, 3)) + self.layer(x[..., :8, :8]).mean((2, 3))
        return y


def test_a_layer_that_pads_otherwise_each_time_is_left() -> None:
    plain = with_plain_layers(AtTwoSizes().eval(), IMAGES)
    assert "each time" in plain.left["layer"]


def test_many_layers_of_one_kind_are_told_in_one_line() -> None:
    model = nn.Sequential(*[SamePadded(3, 3, 3) for _ in range(6)]).eval()
    assert with_plain_layers(model, IMAGES).sentences() == ["0, 1, 2, 3 and 2 more: SamePadded, taken as a convolution"]
