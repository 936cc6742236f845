"""The settings of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from edgewise.errors import RequestError
from edgewise.stage import in_range
from edgewise.stages.training.augment import Augment

Decay = Literal["cosine", "linear"]
ComputePrecision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained."""

    epochs: int
    steps: int = 0
    """Batches an epoch, drawn anew each time, for trainings shorter than the whole set; 0: the whole set."""
    lr: float
    """Peak learning rate; falls to 0."""
    decay: Decay = "cosine"
    """Along a half cosine (Loshchilov and Hutter 2016, arXiv 1608.03983) or a straight line."""
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Not applied to biases and to the scales of normalisation layers."""
    warmup: float = 0.0
    """Epochs over which the rate rises linearly from 0."""
    label_smoothing: float = 0.0
    distill: float = 0.0
    """Weight of the teacher's softened classes in the loss (Hinton et al. 2015, arXiv 1503.02531); 0: labels only."""
    temperature: float = 4.0
    """Of the softening."""
    views: int = 0
    """Random changes that each image takes turns in, so that the teacher is asked about each once; 0: ever new ones."""
    auxiliary: float = 0.3
    """Weight of auxiliary classifiers' losses, where a network has them (Szegedy et al. 2014, section 5)."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then the result; 0: off."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    augment: Augment = field(default_factory=Augment)
    precision: ComputePrecision = "auto"
    """auto: bfloat16 mixed precision where the device computes it natively, float32 elsewhere."""
    channels_last: bool = True
    """Memory order of weights and images; a network that cannot be trained so is trained channels-first (``layout``)."""
    devices: int = 1
    """Processes, one a device; above 1 each takes its share of every batch (distributed data parallel)."""

    def __post_init__(self) -> None:
        in_range("epochs", self.epochs, 1, 1_000_000)
        in_range("steps", self.steps, 0, 1_000_000)
        in_range("lr", self.lr, 1e-12, 100)
        if self.decay not in get_args(Decay):
            raise RequestError(f"decay must be one of {', '.join(get_args(Decay))}, found {self.decay!r}")
        in_range("batch_size", self.batch_size, 1, 1_000_000)
        in_range("warmup", self.warmup, 0, self.epochs)
        in_range("label_smoothing", self.label_smoothing, 0, 0.99)
        in_range("distill", self.distill, 0, 1)
        in_range("temperature", self.temperature, 1e-3, 1e3)
        in_range("views", self.views, 0, 1000)
        if self.views and not self.distill:
            raise RequestError("views saves asking the teacher, and there is none without distill; leave views at 0")
        in_range("ema", self.ema, 0, 0.999999)
        in_range("devices", self.devices, 1, 1024)


def resolve_precision(precision: ComputePrecision, device: str) -> str:
    """The precision that ``auto`` stands for on this machine."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
