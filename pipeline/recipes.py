"""Ready recipes. A derived one calls another and replaces fields."""

from __future__ import annotations

import dataclasses

from edgewise.recipe import Recipe
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.separate import Separate
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.verify.gates import Limits

_DIGITS = Augment(crop=1, flip=False)


def demo() -> Recipe:
    """A small residual network on handwritten digits, through every step to three runtimes, in minutes."""
    recover = Finetune(training=Training(epochs=20, lr=0.05, batch_size=64, distill=0.7, augment=_DIGITS))
    return Recipe(
        name="demo",
        model="tiny_resnet",
        data="digits",
        baseline=Train(training=Training(epochs=40, lr=0.1, batch_size=64, warmup=1, augment=_DIGITS)),
        stages=(Prune(channels=0.7), recover, Separate(max_error=0.6, measure_time=False), recover, Fold()),
        quantize=Quantize(
            training=Training(epochs=4, lr=0.002, batch_size=64, distill=0.7, precision="32-true", augment=_DIGITS)
        ),
        targets=("onnx", "xnnpack", "coreml"),
        candidates=("float", "int8"),
        limits=Limits(max_drop=0.02),
    )


def quantize_only() -> Recipe:
    """A trained network as it is: batch norms folded, calibrated, trained on only where calibration loses too much."""
    return Recipe(
        name="quantize_only",
        model="tiny_resnet",
        data="digits",
        baseline=Train(training=Training(epochs=40, lr=0.1, warmup=1)),
        stages=(Fold(),),
        # A figure for the report: on photographs, 32 images a layer take minutes, 128 a quarter of an hour.
        quantize=Quantize(training=Training(epochs=2, lr=0.0001, distill=0.9), when_needed=True, sensitivity=32),
        targets=("onnx",),
        candidates=("float", "int8"),
    )


def cifar_resnet20() -> Recipe:
    """ResNet-20 on CIFAR-10, compressed with a fine-tune short enough for two cores."""
    return Recipe(
        name="cifar_resnet20",
        model="resnet20",
        data="cifar10:cifar10",
        baseline=Train(training=Training(epochs=200, lr=0.1, warmup=1)),
        stages=(Prune(macs=0.8), Finetune(training=Training(epochs=4, lr=0.01, distill=0.9)), Fold()),
        quantize=Quantize(training=Training(epochs=1, lr=0.0001, distill=0.9)),
        targets=("onnx", "xnnpack", "coreml"),
        candidates=("float", "int8"),
    )


def cifar_resnet56() -> Recipe:
    """ResNet-56 on CIFAR-10 at about 2.5 times fewer MACs, with the long fine-tune that this needs."""
    return dataclasses.replace(
        cifar_resnet20(),
        name="cifar_resnet56",
        model="resnet56",
        stages=(
            Prune(macs=1 / 2.57, reconstruct=1024, shortcuts=False),
            Finetune(training=Training(epochs=100, lr=0.02, distill=0.9)),
            Fold(),
        ),
        quantize=Quantize(training=Training(epochs=4, lr=0.0001, distill=0.9)),
    )


def cifar_resnet56_shallow() -> Recipe:
    """ResNet-56 on CIFAR-10 with 9 of its 27 blocks, as deep as ResNet-20, then trained for 60 epochs."""
    kept = {"layer1": (0,), "layer2": (0, 1, 3, 6), "layer3": (0, 1, 4, 8)}
    gone = tuple(f"{stage}.{block}" for stage, blocks in kept.items() for block in range(9) if block not in blocks)
    return dataclasses.replace(
        cifar_resnet20(),
        name="cifar_resnet56_shallow",
        model="resnet56",
        stages=(
            RemoveBlocks(blocks=gone, reconstruct=256, recover_steps=250),
            Finetune(training=Training(epochs=60, lr=0.1, warmup=1, distill=0.9, views=8)),
            Fold(),
        ),
    )


def separate_resnet20() -> Recipe:
    """ResNet-20 on CIFAR-10 with depthwise-separable convolutions fitted to its own, distilled, then fine-tuned."""
    recover = Training(epochs=60, lr=0.02, distill=0.9)
    return Recipe(
        name="separate_resnet20",
        model="resnet20",
        data="cifar10:cifar10",
        baseline=Train(training=Training(epochs=200, lr=0.1, warmup=1)),
        stages=(Separate(max_drop=0.2, recover_steps=1000), Finetune(training=recover), Fold()),
        targets=("onnx", "xnnpack"),
        limits=Limits(max_drop=0.011),
    )


def separate_resnet56() -> Recipe:
    """ResNet-56 on CIFAR-10 with depthwise-separable convolutions fitted to its own, distilled, then fine-tuned."""
    smaller = separate_resnet20()
    return dataclasses.replace(
        smaller,
        name="separate_resnet56",
        model="resnet56",
        stages=(Separate(max_drop=0.08, recover_steps=1000), *smaller.stages[1:]),
    )


def separate_vgg16() -> Recipe:
    """VGG-16 with batch norm on CIFAR-10, trained here, then with fitted depthwise-separable convolutions."""
    return dataclasses.replace(separate_resnet56(), name="separate_vgg16", model="vgg16_bn_cifar")


def cifar_resnet20_int8() -> Recipe:
    """ResNet-20 on CIFAR-10, quantized and nothing else: calibrated, then a few hundred steps of training."""
    return dataclasses.replace(
        cifar_resnet20(),
        name="cifar_resnet20_int8",
        stages=(Fold(),),
        quantize=Quantize(training=Training(epochs=4, steps=100, lr=0.0001, distill=0.9)),
    )


def cifar_resnet56_int8() -> Recipe:
    """ResNet-56 on CIFAR-10, quantized and nothing else: calibrated, then a few hundred steps of training."""
    return dataclasses.replace(cifar_resnet20_int8(), name="cifar_resnet56_int8", model="resnet56")
