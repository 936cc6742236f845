"""The small network learns the digits within seconds, and its metadata fit them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgewise import models


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1797, 1, 8, 8] from 0 to 1, labels [1797]."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def test_mean_and_deviation_are_the_digits() -> None:
    images, _ = _digits()
    spec = models.get("tiny_resnet")
    assert spec.mean == pytest.approx((images.mean().item(),), abs=1e-4)
    assert spec.std == pytest.approx((images.std(correction=0).item(),), abs=1e-4)


def test_learns_digits() -> None:
    torch.manual_seed(0)
    images, labels = _digits()
    spec = models.get("tiny_resnet")
    images = (images - spec.mean[0]) / spec.std[0]
    order = torch.randperm(len(images))
    train, test = order[:1437], order[1437:]
    model = spec.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    assert right > 0.97
