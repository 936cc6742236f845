"""Numbers of parameters, as published by the papers, torchvision and timm."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from edgewise import models
from edgewise.models._published import PUBLISHED


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count(name: str) -> None:
    with torch.device("meta"):
        assert _count(models.get(name).build()) == PUBLISHED[name].params


def test_every_architecture_that_was_published_is_in_the_table() -> None:
    assert set(models.names()) - set(PUBLISHED) == {"tiny_resnet", "vgg16_bn_cifar"}


def test_googlenet_without_side_classifiers() -> None:
    with torch.device("meta"):
        assert _count(models.get("googlenet").build(auxiliary=False)) == 6_624_904
        model = models.get("googlenet").build()
    model.drop_auxiliary()
    assert _count(model) == 6_624_904


def test_cifar_vgg_counted_by_hand() -> None:
    """Thirteen convolutions with biases and batch norms, and 512 x 10 + 10."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    body = sum(9 * i * o + o + 2 * o for i, o in pairwise(widths))
    with torch.device("meta"):
        assert _count(models.get("vgg16_bn_cifar").build()) == body + 5130 == 14_728_266


def test_efficientnet_follows_the_compound_rule() -> None:
    """Resolution grows by 1.15 for each step of phi, rounded by the authors; B1 stands at half a step."""
    for variant, phi in ((1, 0.5), (2, 1.0), (3, 2.0), (5, 5.0), (7, 7.0)):
        side = models.get(f"efficientnet_b{variant}").input_shape[1]
        assert side == pytest.approx(224 * 1.15**phi, rel=0.02)
