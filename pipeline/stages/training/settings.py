"""The settings of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from edgewise.errors import RequestError
from edgewise.settings import check_fields
from edgewise.stage import in_range
from edgewise.stages.training.augment import Augment

Decay = Literal["cosine", "linear"]
ComputePrecision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@check_fields
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained."""

    epochs: Annotated[int, Interval(ge=1, le=1_000_000)]
    steps: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    """Batches an epoch, drawn anew each time, for trainings shorter than the whole set; 0: the whole set."""
    lr: Annotated[float, Interval(ge=1e-12, le=100)]
    """Peak learning rate; falls to 0."""
    decay: Decay = "cosine"
    """Along a half cosine (Loshchilov and Hutter 2016, arXiv 1608.03983) or a straight line."""
    batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Interval(ge=0, le=100)] = 5e-4
    """Not applied to biases and to the scales of normalisation layers."""
    warmup: Annotated[float, Interval(ge=0, le=1_000_000)] = 0.0
    """Epochs over which the rate rises linearly from 0."""
    label_smoothing: Annotated[float, Interval(ge=0, le=0.99)] = 0.0
    distill: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Weight of the teacher's softened classes in the loss (Hinton et al. 2015, arXiv 1503.02531); 0: labels only."""
    temperature: Annotated[float, Interval(ge=1e-3, le=1e3)] = 4.0
    """Of the softening."""
    views: Annotated[int, Interval(ge=0, le=1000)] = 0
    """Random changes that each image takes turns in, so that the teacher is asked about each once; 0: ever new ones."""
    mirrored_teacher: bool = False
    """The teacher's answer is the mean of what it says about an image and about its mirror image (a classifier tested so:
    Krizhevsky et al. 2012, section 4.1); for data whose mirrored images keep their label."""
    auxiliary: Annotated[float, Interval(ge=0, le=100)] = 0.3
    """Weight of auxiliary classifiers' losses, where a network has them (Szegedy et al. 2014, section 5)."""
    ema: Annotated[float, Interval(ge=0, le=0.999999)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is then the result; 0: off."""
    clip: Annotated[float, Interval(ge=0, le=1e9)] = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    augment: Augment = field(default_factory=Augment)
    precision: ComputePrecision = "auto"
    """auto: bfloat16 mixed precision where the device computes it natively and the network stands it, float32 elsewhere."""
    channels_last: bool = True
    """Memory order of weights and images; a network that cannot be trained so is trained channels-first (``layout``)."""
    devices: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Processes, one a device; above 1 each takes its share of every batch (distributed data parallel)."""
    nodes: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Machines, each with so many devices; above 1 the command is started on each, by torchrun or Slurm."""

    def __post_init__(self) -> None:
        in_range("Training.warmup", self.warmup, 0, self.epochs)
        if self.views and not self.distill:
            raise RequestError("views saves asking the teacher, and there is none without distill; leave views at 0")
        if self.mirrored_teacher and not self.distill:
            raise RequestError("mirrored_teacher asks a teacher twice, and there is none without distill; leave it out")


def resolve_precision(precision: ComputePrecision, device: str) -> ComputePrecision:
    """The precision that ``auto`` stands for on this machine."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
