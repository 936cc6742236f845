"""What was published of each architecture: parameters, and multiply-accumulates for one image of the published size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of an architecture with its published number of classes."""

    params: int
    """Of the network as it is trained."""
    macs: float | None
    """In the digits they were published with; None where nobody published any."""
    source: str
    """Of ``macs``."""
    unit: float = 1e6
    """Of the last published digit of ``macs``."""
    side: int | None = None
    """Height and width that ``macs`` were published for, where it is not the architecture's own."""


def _from_torchvision(params: int, giga: float, side: int | None = None) -> Published:
    return Published(params=params, macs=giga * 1e9, source="torchvision", side=side)


def _unpublished(params: int) -> Published:
    return Published(params=params, macs=None, source="")


def _fpgm(params: int, macs: float) -> Published:
    """He et al. 2019, Filter Pruning via Geometric Median (arXiv 1811.00250), table 1; three digits."""
    return Published(params=params, macs=macs, source="He et al. 2019", unit=1e5 if macs < 1e8 else 1e6)


PUBLISHED = {
    "alexnet": _from_torchvision(61_100_840, 0.714),
    "convnext_tiny": _from_torchvision(28_589_128, 4.456),
    "efficientnet_b0": _from_torchvision(5_288_548, 0.386),
    "efficientnet_b1": _from_torchvision(7_794_184, 0.687),
    "efficientnet_b2": _from_torchvision(9_109_994, 1.088, side=288),
    "efficientnet_b3": _from_torchvision(12_233_232, 1.827),
    "efficientnet_b4": _from_torchvision(19_341_616, 4.394),
    "efficientnet_b5": _from_torchvision(30_389_784, 10.266),
    "efficientnet_b6": _from_torchvision(43_040_704, 19.068),
    "efficientnet_b7": _from_torchvision(66_347_960, 37.746),
    "googlenet": _from_torchvision(13_004_888, 1.498),
    "lenet5": _unpublished(61_706),
    "mobilenet_v1": Published(params=4_231_976, macs=569e6, source="Howard et al. 2017"),
    "mobilenet_v2": _from_torchvision(3_504_872, 0.301),
    "mobilenet_v3_large": _from_torchvision(5_483_032, 0.217),
    "mobilenet_v3_small": _from_torchvision(2_542_856, 0.057),
    "mobilevit_s": _unpublished(5_578_632),
    "mobilevit_xs": _unpublished(2_317_848),
    "mobilevit_xxs": _unpublished(1_272_024),
    "resnet101": _from_torchvision(44_549_160, 7.801),
    "resnet110": _fpgm(1_727_962, 253e6),
    "resnet152": _from_torchvision(60_192_808, 11.514),
    "resnet18": _from_torchvision(11_689_512, 1.814),
    "resnet20": _fpgm(269_722, 40.6e6),
    "resnet32": _fpgm(464_154, 68.9e6),
    "resnet34": _from_torchvision(21_797_672, 3.664),
    "resnet44": _unpublished(658_586),
    "resnet50": _from_torchvision(25_557_032, 4.089),
    "resnet56": _fpgm(853_018, 125e6),
    "shufflenet_v2_x0_5": _from_torchvision(1_366_792, 0.040),
    "shufflenet_v2_x1_0": _from_torchvision(2_278_604, 0.145),
    "shufflenet_v2_x1_5": _from_torchvision(3_503_624, 0.296),
    "shufflenet_v2_x2_0": _from_torchvision(7_393_996, 0.583),
    "squeezenet1_0": _from_torchvision(1_248_424, 0.819),
    "squeezenet1_1": _from_torchvision(1_235_496, 0.349),
    "vgg11": _from_torchvision(132_863_336, 7.609),
    "vgg11_bn": _from_torchvision(132_868_840, 7.609),
    "vgg13": _from_torchvision(133_047_848, 11.308),
    "vgg13_bn": _from_torchvision(133_053_736, 11.308),
    "vgg16": _from_torchvision(138_357_544, 15.470),
    "vgg16_bn": _from_torchvision(138_365_992, 15.470),
    "vgg19": _from_torchvision(143_667_240, 19.632),
    "vgg19_bn": _from_torchvision(143_678_248, 19.632),
    "vit_b_16": _from_torchvision(86_567_656, 17.564),
    "vit_small_patch16_224": _unpublished(22_050_664),
    "vit_tiny_patch16_224": _unpublished(5_717_416),
}
