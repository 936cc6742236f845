"""Global average pooling and one fitted layer in the place of a fully connected head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import StageError
from edgewise.measure.cost.totals import count_costs
from edgewise.models._layers import GridMean
from edgewise.stage import Context
from edgewise.stages.prune import Prune
from edgewise.stages.separate.pooled_head import PooledHead, fit_head


class Images:
    """Random bytes in four squares each, so that the images' means differ as those of real ones do."""

    def __init__(self, seed: int, side: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        corners = torch.randint(0, 256, (96, 3, 2, 2), dtype=torch.uint8, generator=generator)
        self._images = corners.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)
        self.labels = torch.zeros(96, dtype=torch.int64)

    def __len__(self) -> int:
        return 96

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path, classifier: str = "head.3", side: int = 8, facts: dict[str, Any] | None = None) -> Context:
    train, calib = Images(0, side), Images(1, side)
    data = Data(name="noise", train=train, calib=calib, test=calib, classes=("a",), shape=(3, side, side), digest="0")
    spec = models.Spec(
        name="net", build=nn.Identity, input_shape=data.shape, mean=(0.5,), std=(0.25,), classifier=classifier
    )
    return Context(spec=spec, data=data, scratch=folder, fact=({} if facts is None else facts).__setitem__)


class Net(nn.Module):
    """Feature maps, a grid of 2 x 2, and a head of two layers."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.pool = GridMean(2)
        self.head = nn.Sequential(nn.Linear(20, 7), activation(), nn.Dropout(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


def test_fit_by_hand() -> None:
    # y = 3f + 1 over f = -1, 1: variance 1, covariance 3. A ridge of 1/2 holds the slope at 3 / 1.5; the mean is kept.
    features, logits = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[-2.0], [4.0]]).double()
    weight, bias = fit_head(features, logits, 0.0)
    assert weight.item() == pytest.approx(3) and bias.item() == pytest.approx(1)
    weight, bias = fit_head(features, logits, 0.5)
    assert weight.item() == pytest.approx(2) and bias.item() == pytest.approx(1)


def test_a_feature_that_never_varies_is_left_at_zero() -> None:
    features = torch.tensor([[-1.0, 4.0], [1.0, 4.0]]).double()
    weight, bias = fit_head(features, torch.tensor([[-2.0], [4.0]]).double(), 0.0)
    assert weight[0].tolist() == pytest.approx([3, 0]) and bias.item() == pytest.approx(1)


def test_a_head_that_only_reads_the_means_is_reproduced(tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    model = Net(nn.Identity).eval()
    with torch.no_grad():  # every cell of a feature map has the same weight
        model.head[0].weight.copy_(model.head[0].weight[:, ::4].repeat_interleave(4, 1))
    found = PooledHead(ridge=0.0)(model, context(tmp_path, facts=facts))
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(found(images), model(images), rtol=1e-3, atol=1e-4)
    (layer,) = facts["plan"]["layers"]
    assert layer["error"] < 1e-3 and layer["shape"] == "20 to 7 to 3"
    assert (layer["dense_macs"], layer["new_macs"]) == (20 * 7 + 7 * 3, 5 * 3)
    assert count_costs(found, (3, 8, 8)).macs == 64 * 9 * 3 * 5 + 5 * 3
    assert found.head[3].in_features == 5 and isinstance(found.head[0], nn.Identity)


def test_it_comes_close_to_a_head_with_activations(tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    PooledHead()(Net().eval(), context(tmp_path, facts=facts))
    assert 0 < facts["plan"]["layers"][0]["error"] < 0.9  # 1 is as bad as the mean logits


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_the_published_heads_prune_after(name: str, tmp_path: Path) -> None:
    spec = models.get(name)
    side = 64
    settings = dict(spec.small) | {"grid": 2 if name == "vgg11_bn" else 1}
    model = spec.build(num_classes=3, **settings).eval()
    ctx = replace(context(tmp_path, side=side), spec=replace(spec, num_classes=3))
    found = PooledHead(max_error=100)(model, ctx)
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in model.parameters())
    pruned = Prune(channels=0.7, round_to=2)(found, ctx)
    assert count_costs(pruned, ctx.input_shape).macs < count_costs(found, ctx.input_shape).macs
    assert pruned(torch.rand(2, 3, side, side)).shape == (2, 3)


def test_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not end a Sequential"):
        PooledHead()(models.get("tiny_resnet").build(in_channels=3).eval(), context(tmp_path, "linear"))
    with pytest.raises(StageError, match="found Softmax"):
        PooledHead()(Net(nn.Softmax).eval(), context(tmp_path))
    with pytest.raises(StageError, match=r"above 0\.001"):
        PooledHead(max_error=0.001)(Net().eval(), context(tmp_path))
    plain = Net()
    plain.pool, plain.head = GridMean(1), nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(StageError, match="one linear layer on the mean of every feature map already"):
        PooledHead()(plain.eval(), context(tmp_path, "head.0"))
