"""Numbers of parameters, as published by the papers, torchvision and timm."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import models

PUBLISHED = {
    "alexnet": 61_100_840,
    "convnext_tiny": 28_589_128,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "googlenet": 13_004_888,
    "lenet5": 61_706,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "mobilevit_s": 5_578_632,
    "mobilevit_xs": 2_317_848,
    "mobilevit_xxs": 1_272_024,
    "resnet101": 44_549_160,
    "resnet110": 1_727_962,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet34": 21_797_672,
    "resnet44": 658_586,
    "resnet50": 25_557_032,
    "resnet56": 853_018,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x1_5": 3_503_624,
    "shufflenet_v2_x2_0": 7_393_996,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "vit_b_16": 86_567_656,
    "vit_small_patch16_224": 22_050_664,
    "vit_tiny_patch16_224": 5_717_416,
}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count(name: str) -> None:
    with torch.device("meta"):
        assert _count(models.get(name).build()) == PUBLISHED[name]


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
