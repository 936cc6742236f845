"""Group regularisation: its factors by hand, and that training with it makes channels sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.prune.blocks import trace_groups
from edgewise.stages.prune.sparsify import Sparsify, penalty_factors
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training

SHAPE = (1, 4, 4)


class Noise:
    """Random bytes and labels."""

    labels = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 32

    def batch(self, index: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8, generator=draw)[index]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def context(folder: Path, told: dict[str, Any]) -> Context:
    part = Noise()
    data = Data(name="noise", train=part, calib=part, test=part, classes=("a", "b"), shape=SHAPE, digest="0")
    spec = Spec(name="net", build=net, input_shape=SHAPE, mean=(0.5,), std=(0.25,), classifier="5")
    folder.mkdir(exist_ok=True)
    return Context(spec=spec, data=data, scratch=folder, fact=told.__setitem__)


def training(epochs: int = 40) -> Training:
    return Training(
        epochs=epochs, lr=0.1, batch_size=32, weight_decay=0.0, precision="32-true", augment=Augment(crop=0, flip=False)
    )


def test_the_factors_of_a_group_by_hand() -> None:
    model = net().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1))
        model[1].weight.zero_()
        model[5].weight.zero_()
    (group,) = trace_groups(model, torch.randn(1, *SHAPE), classifier="5").groups
    found = penalty_factors(model, [group], sharpness=4.0)
    # Squared weights 1, 4, 9, 16: gamma = 2 ** (4 * (16 - I) / 15).
    gamma = torch.tensor([2.0**4, 2 ** (4 * 12 / 15), 2 ** (4 * 7 / 15), 1.0])
    assert torch.allclose(found[model[0].weight].flatten(), gamma)
    assert torch.allclose(found[model[1].weight], gamma)
    assert torch.allclose(found[model[5].weight], gamma.expand(2, 4))
    assert len(found) == 3


def test_blocks_become_sparse_and_the_input_stays(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    model = net()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = Sparsify(training=training(), strength=0.0)(model, context(tmp_path / "plain", told))
    assert told["sparse_blocks"] == {"before": 0, "after": 0, "of": 4}
    pulled = Sparsify(training=training(), strength=0.05)(model, context(tmp_path / "pulled", told))
    assert told["sparse_blocks"]["after"] > 0
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert pulled[0].weight.square().sum().item() < plain[0].weight.square().sum().item()
    assert not pulled.training and all(p._backward_hooks is None or not p._backward_hooks for p in pulled.parameters())


def test_what_is_frozen_is_not_pulled(tmp_path: Path) -> None:
    model = net()
    model[0].requires_grad_(False)
    pulled = Sparsify(training=training(2), strength=0.05)(model, context(tmp_path, {}))
    assert torch.equal(pulled[0].weight, model[0].weight) and not torch.equal(pulled[5].weight, model[5].weight)


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sparsify(training=training(4), strength=0.05)(net(), context(tmp_path / "whole", {}))
    from edgewise.stages.prune import sparsify

    renew = sparsify._Pull.renew

    def killed(self: Any, model: nn.Module, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        renew(self, model, epoch)

    monkeypatch.setattr(sparsify._Pull, "renew", killed)
    with pytest.raises(KeyboardInterrupt):
        Sparsify(training=training(4), strength=0.05)(net(), context(tmp_path / "cut", {}))
    monkeypatch.setattr(sparsify._Pull, "renew", renew)
    again = Sparsify(training=training(4), strength=0.05)(net(), context(tmp_path / "cut", {}))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="one device"):
        Sparsify(training=Training(epochs=1, lr=0.1, devices=2))
    with pytest.raises(RequestError, match="strength"):
        Sparsify(strength=-1.0)
    with pytest.raises(StageError, match="no layer of this network can be pruned"):
        Sparsify(training=training(1), keep=("0",))(net(), context(tmp_path, {}))
