"""Whether given weights answer as trained ones do, and if not, which other preparation of the images they may want."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgewise.calib_data import Data
from edgewise.images.normalise import normalise, per_channel
from edgewise.measure.batches import images_at_once
from edgewise.measure.per_class import PerClass
from edgewise.models import IMAGENET_MEAN, IMAGENET_STD, Spec

TRIED = 64
"""Images on which other preparations are tried."""
HARDLY = 0.1
"""Top-1 below which a network of ``MANY`` classes or more is taken to be fed wrongly."""
MANY = 20
CLEARLY = 0.05
"""By how much another preparation's top-1 has to be higher to be named."""
TOLERANCE = 0.005
"""By how much a baseline may miss the top-1 that is expected of it: readers of JPEG and filters differ."""

_BYTES = (1 / 255,)
USUAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "−1 to 1": ((0.5,), (0.5,)),
    "(x − 127) / 128": ((127 / 255,), (128 / 255,)),
    "0 to 1": ((0.0,), (1.0,)),
    "bytes, 0 to 255": ((0.0,), _BYTES),
    "bytes less ImageNet's mean": (tuple(m / 255 for m in (123.68, 116.779, 103.939)), _BYTES),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CLIP's": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}
"""Name -> mean and deviation, in units of 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One preparation of the images, tried on a few of them."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    top1: float


def doubt_answers(figures: PerClass) -> str:
    """Why answers to a test set are not those of a trained network, in a phrase; empty where they may be."""
    from statsmodels.stats.proportion import proportion_confint

    classes, right = len(figures.images), sum(figures.right)
    if figures.not_finite:
        return f"{figures.not_finite:,} of {figures.n:,} answers are not finite numbers"
    if figures.only_answer is not None:
        return f"all {figures.n:,} images are answered with one class, number {figures.only_answer}"
    low, _ = proportion_confint(right, figures.n, method="wilson")
    if low <= 1 / classes or (classes >= MANY and right / figures.n < HARDLY):
        return f"top-1 is {right / figures.n:.2%}, hardly what guessing among {classes:,} classes gives"
    return ""


def compare_to_expected(top1: float, expected: float | None) -> str:
    """How a baseline's top-1 falls short of what is expected of it; empty where it does not."""
    if expected is None or top1 >= expected - TOLERANCE:
        return ""
    return f"{expected:.2%} are expected of these weights, {top1:.2%} were measured"


@torch.inference_mode()
def try_preparations(network: Callable[[Tensor], Tensor], data: Data, spec: Spec) -> list[Trial]:
    """The network on a few labelled images under its own and the usual normalisations, in RGB and BGR, the best first."""
    part = data.calib if data.calib_is_labelled and len(data.calib) >= TRIED else data.test
    index = torch.linspace(0, len(part) - 1, min(TRIED, len(part))).long()
    images, labels = part.batch(index), part.labels[index]
    at_once = images_at_once(network, data.shape)
    trials = []
    for name, (mean, std) in {"as it is": (spec.mean, spec.std), **USUAL}.items():
        for bgr in (False, True) if data.shape[0] == 3 else (False,):
            prepared = _Prepared(mean, std, bgr)
            answers = torch.cat([network(prepared(chunk)) for chunk in torch.split(images, at_once)])
            top1 = float((answers.argmax(1) == labels).float().mean())
            trials.append(Trial(name=name, mean=mean, std=std, bgr=bgr, top1=top1))
    return sorted(trials, key=lambda trial: -trial.top1)


@dataclass(frozen=True)
class _Prepared:
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 [B, C, H, W]."""
        channels = images.shape[1]
        fitting = _Prepared(
            per_channel(_per_channel(self.mean, channels), channels),
            per_channel(_per_channel(self.std, channels), channels),
            False,
        )
        inputs = normalise(images, fitting)
        return inputs.flip(1) if self.bgr else inputs


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) in (1, channels) else (sum(values) / len(values),)


def preparation_advice(trials: list[Trial]) -> str:
    """Which preparation the weights likely want, where one is clearly better than their own; else that none is."""
    own = next(trial for trial in trials if trial.name == "as it is" and not trial.bgr)
    best, count = trials[0], f"{TRIED} images"
    if best.top1 < own.top1 + CLEARLY:
        return f"none of the usual normalisations nor BGR does better on {count}"
    text = f"with {best.name} normalisation{' in BGR order' if best.bgr else ''} top-1 is {best.top1:.0%} on {count}, "
    text += f"as it is {own.top1:.0%}: likely --mean {_numbers(best.mean)} --std {_numbers(best.std)}"
    return text + ("; for BGR flip the channels in the network's file (images.flip(1))" if best.bgr else "")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def as_facts(trials: list[Trial]) -> list[dict[str, Any]]:
    """Trials as JSON types, the best first."""
    return [
        {"normalisation": t.name, "mean": list(t.mean), "std": list(t.std), "bgr": t.bgr, "top1": t.top1}
        for t in trials
    ]
