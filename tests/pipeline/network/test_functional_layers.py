"""Convolutions and batch norms that are called as functions become layers, and fold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.network import surgery
from edgewise.network.fold_norms import without_norms
from edgewise.network.plain_layers import with_plain_layers

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    """Calls a convolution with the weight of a layer that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(F.conv2d(x, self.conv.weight, None, 2, 1)))


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x))


class AllByHand(nn.Module):
    """A network without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.batch_norm(x, self.get_buffer("mean"), self.get_buffer("var"), self.scale, self.shift, self.training)
        x = F.dropout(F.hardswish(x), 0.1, self.training)
        answer: Tensor = self.fc(x.view(x.size(0), 4, -1).mean(2))
        return answer


KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight of a layer that is not called": (lambda: nn.Sequential(Block(), nn.Flatten()), "0"),
    "norm with its activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Flatten()), "1"),
    "the whole network": (AllByHand, ""),
}


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_layers_and_folds(kind: str) -> None:
    build, name = KINDS[kind]
    model = lively(build())
    plain = with_plain_layers(model, IMAGES)
    assert list(plain.taken) == [name] and not plain.left
    folded = without_norms(plain.model, IMAGES)
    convs = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1 and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded.eval()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_rebuilt_from_json_and_can_be_trained(kind: str) -> None:
    build, _ = KINDS[kind]
    plain = with_plain_layers(lively(build()), IMAGES).model
    (operation,) = surgery.history(plain)
    again = surgery.apply(build().eval(), surgery.Replace(**json.loads(json.dumps(asdict(operation)))))
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again(IMAGES), plain(IMAGES))
    again.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    torch.export.export(plain.eval(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))


class Sided(nn.Module):
    """Holds a layer that answers in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.conv.weight, self.conv.bias).relu()
        return y + self.side(x) if self.training else y


class Twice(nn.Module):
    """Runs a block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x) + self.block(-x)
        return y


@pytest.mark.parametrize(
    ("model", "told"),
    [(nn.Sequential(Sided(), nn.Flatten()), r"something else in training: side\.weight"), (Twice(), "runs 2 times")],
)
def test_what_cannot_be_taken_is_left_and_told(model: nn.Module, told: str) -> None:
    plain = with_plain_layers(model.eval(), IMAGES)
    assert plain.model is model
    assert any(told.replace("\\", "") in why for why in plain.left.values())
