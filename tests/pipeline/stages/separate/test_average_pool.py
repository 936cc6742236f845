"""Average pooling in the place of max pooling."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.models._layers import CeilMaxPool
from edgewise.network import surgery
from edgewise.stage import Context
from edgewise.stages.separate.average_pool import AveragePool, fit_line


class Images:
    """Random bytes of one shape."""

    def __init__(self, seed: int, side: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.randint(0, 256, (40, 3, side, side), dtype=torch.uint8, generator=generator)
        self.labels = torch.zeros(40, dtype=torch.int64)

    def __len__(self) -> int:
        return 40

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path, facts: dict[str, Any] | None = None, side: int = 8) -> Context:
    train, calib = Images(0, side), Images(1, side)
    data = Data(name="noise", train=train, calib=calib, test=calib, classes=("a",), shape=(3, side, side), digest="0")
    spec = models.Spec(name="net", build=nn.Identity, input_shape=data.shape, mean=(0.5,), std=(0.25,), classifier="")
    return Context(spec=spec, data=data, scratch=folder, fact=({} if facts is None else facts).__setitem__)


def net(pool: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(6, 4, 1), nn.Flatten()).eval()


def test_line_by_hand() -> None:
    # Averages 0, 1, 2 and maxima 1, 3, 5: twice the average and one; then a channel that never varies: its own offset.
    x, y = (
        torch.tensor([[0.0, 1.0, 2.0], [2.0, 2.0, 2.0]]).double(),
        torch.tensor([[1.0, 3.0, 5.0], [3.0, 4.0, 5.0]]).double(),
    )
    ones = torch.ones_like(x)
    slope, offset = fit_line(ones.sum(1), x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1))
    assert slope.tolist() == pytest.approx([2, 1]) and offset.tolist() == pytest.approx([1, 2])


def test_the_map_is_the_least_squares_one(tmp_path: Path) -> None:
    model, facts = net(nn.MaxPool2d(2)), dict[str, Any]()
    found = AveragePool()(model, context(tmp_path, facts))
    average, affine = found[2]
    images = (Images(0, 8).batch(torch.arange(40)).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        before = model[:2](images)
        x, y = average(before)[:, 3].flatten().double(), model[2](before)[:, 3].flatten().double()
    wanted = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[:, 0]
    assert affine.weight[3].item() == pytest.approx(float(wanted[0]), rel=1e-4)
    assert affine.bias[3].item() == pytest.approx(float(wanted[1]), rel=1e-4)
    (layer,) = facts["plan"]["layers"]
    assert 0 < layer["error"] < 1 and layer["new_macs"] == 6 * 16 and layer["accepted"]
    json.dumps(facts, allow_nan=False)


def test_fitted_comes_closer_than_plain(tmp_path: Path) -> None:
    errors = []
    for fit in (True, False):
        facts: dict[str, Any] = {}
        found = AveragePool(fit=fit, max_error=100)(net(nn.MaxPool2d(3, 2, 1)), context(tmp_path, facts))
        errors.append(facts["plan"]["layers"][0]["error"])
        assert not [m for m in found.modules() if isinstance(m, nn.MaxPool2d)]
    assert errors[0] < 0.8 * errors[1]


def test_constant_windows_are_exact(tmp_path: Path) -> None:
    """Where each window holds one value the average is the maximum."""
    facts: dict[str, Any] = {}
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2), nn.Flatten()).eval()
    model.append(nn.Linear(192, 2))
    AveragePool()(model, context(tmp_path, facts))
    assert facts["plan"]["layers"][0]["error"] < 1e-4


def test_poolings_that_cannot_be_replaced_are_named(tmp_path: Path) -> None:
    for pool, reason in (
        (nn.MaxPool2d(2, dilation=2), "dilated"),
        (CeilMaxPool(3, 2), "stands over the edge"),
    ):
        with pytest.raises(StageError, match=reason):
            AveragePool()(net(pool), context(tmp_path))
    with pytest.raises(StageError, match="no max pooling in this network"):
        AveragePool()(net(nn.Identity()), context(tmp_path))
    with pytest.raises(StageError, match=r"the error is above 0\.01"):
        AveragePool(max_error=0.01)(net(nn.MaxPool2d(2)), context(tmp_path))
    with pytest.raises(RequestError, match="There are: 2"):
        AveragePool(keep=("pool",))(net(nn.MaxPool2d(2)), context(tmp_path))


def test_surgery_rebuilds_it(tmp_path: Path) -> None:
    model, ctx = models.get("vgg11_bn"), context(tmp_path, side=32)
    network = model.build(num_classes=3, **model.small).eval()
    found = AveragePool(max_error=10)(network, ctx)
    again = model.build(num_classes=3, **model.small).eval()
    for operation in surgery.history(found):
        again = surgery.apply(again, surgery.Replace(**json.loads(json.dumps(asdict(operation)))))  # type: ignore[call-overload]
    again.load_state_dict(found.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), found(images))
