"""The plan of a run, told before any work: what was found, the steps, about how long, and what the test set can prove."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgewise.images.normalise import normalise
from edgewise.measure.statistics import images_to_prove, provable_fall
from edgewise.network.start import begin
from edgewise.report import numbers
from edgewise.report.watch import Watch
from edgewise.run.job import Job
from edgewise.run.session import float_candidates
from edgewise.run.steps import Steps
from edgewise.stage import stage_name
from edgewise.stages.training.settings import Training
from edgewise.store.entries import Store

_BATCH = 8
"""Images of the steps that are measured."""
CHANGED = 0.03
"""Share of the test images that change class where a network is compressed and keeps its accuracy: a usual one."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the report to come."""

    name: str
    seconds: float
    """An estimate, from a measured training step; 0 for what the store holds."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do."""

    lines: tuple[str, ...]
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "lines": list(self.lines),
            "steps": [{"name": step.name, "seconds": step.seconds} for step in self.steps],
        }


def make_plan(job: Job) -> Plan:
    """Look at everything and measure one small training step; nothing is kept."""
    network = begin(job.base, job.images()).model
    kept = Steps(job=job, store=Store(job.store), watch=Watch(quiet=True)).count_kept()
    work = _work(job)
    rest = work[kept:] if kept < 1 + len(job.recipe.stages) else []
    trains = any(item.images + item.images_if_needed for item in rest)
    train = _seconds_of_training(network, job) if trains else 0.0
    test = _seconds_of_testing(network, job) if rest else 0.0
    steps = tuple(
        Step(name=item.name, seconds=0.0 if index < kept else item.images * train + len(job.data.test) * test)
        for index, item in enumerate(work)
    )
    perhaps = train * sum(item.images_if_needed for item in rest)
    lines = [*_describe(network, job), _steps_line(steps, kept), *_time_line(steps, perhaps), *_proof_lines(job)]
    return Plan(lines=tuple(lines), steps=steps)


def _describe(network: nn.Module, job: Job) -> list[str]:
    data, spec = job.data, job.spec
    params = sum(parameter.numel() for parameter in network.parameters())
    shape = "×".join(map(str, data.shape))
    weights = (
        f"weights from {job.weights}, every tensor fits" if job.weights else "no weights given: a baseline is trained"
    )
    values = f"mean {_few(spec.mean)}, std {_few(spec.std)}"
    return [
        f"Model: {job.recipe.model}, {params:,} parameters, {len(data.classes):,} classes; {weights}.",
        f"Data: {data.name}, {len(data.train):,} training, {len(data.calib):,} calibration and {len(data.test):,} test images of {shape}; "
        f"normalised with {values}.",
    ]


def _few(values: Sequence[float]) -> str:
    return (
        " ".join(f"{value:.4g}" for value in dict.fromkeys(values))
        if len(set(values)) == 1
        else " ".join(f"{v:.4g}" for v in values)
    )


@dataclass(frozen=True)
class _Work:
    """A row to come, with the images that training for it takes, a teacher's answers counted as a third."""

    name: str
    images: float = 0.0
    images_if_needed: float = 0.0
    """Where calibration alone loses too much."""


def _work(job: Job) -> list[_Work]:
    from edgewise.run.grids import share_grids

    recipe, count = job.recipe, len(job.data.train)
    given = job.weights is not None
    found = [_Work("baseline", 0.0 if given else _images(recipe.baseline, count))]
    found += [_Work(stage_name(stage), _images(stage, count)) for stage in recipe.stages]
    for _, group in share_grids(job.targets):
        quantize = recipe.quantize
        if quantize is not None:
            found += [_Work("calibrate")] if quantize.control and quantize.training is not None else []
            images = _images(quantize, count)
            found.append(_Work("quantize", *((0.0, images) if quantize.when_needed else (images, 0.0))))
        for precision, able in float_candidates(recipe.candidates, group):
            found += [_Work(f"{target.name} {precision or 'float'}") for target in able]
        if not recipe.candidates or "int8" in recipe.candidates:
            found += [_Work(target.name if quantize is None else f"{target.name} int8") for target in group]
    return found


def _images(stage: object, count: int) -> float:
    training = getattr(stage, "training", None)
    if not isinstance(training, Training):
        return 0.0
    images = training.steps * training.batch_size if training.steps else training.epochs * count
    return images * (4 / 3 if training.distill else 1.0)


def _seconds_of_training(network: nn.Module, job: Job) -> float:
    """For one image, on this machine; on a GPU training is faster than told."""
    index = torch.arange(min(_BATCH, len(job.data.train)))
    images, labels = normalise(job.data.train.batch(index), job.spec), job.data.train.labels[index].clamp(min=0)
    with torch.random.fork_rng(devices=[]):
        return min(_train_once(network, images, labels) for _ in range(2)) / len(index)


def _seconds_of_testing(network: nn.Module, job: Job) -> float:
    """For one image, on this machine."""
    images = normalise(job.data.test.batch(torch.arange(min(_BATCH if job.by_batches else 1, len(job.data.test)))), job.spec)
    started = time.perf_counter()
    with torch.inference_mode():
        network.eval()(images)
    return (time.perf_counter() - started) / len(images)


def _train_once(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    started = time.perf_counter()
    answer = network.train()(images)
    logits = answer[0] if isinstance(answer, (tuple, list)) else answer
    torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
    network.zero_grad()
    return time.perf_counter() - started


def _steps_line(steps: Sequence[Step], kept: int) -> str:
    held = f" The first {kept} of them are in the store." if kept else ""
    return f"Steps: {', '.join(step.name for step in steps)}.{held}"


def _time_line(steps: Sequence[Step], perhaps: float) -> list[str]:
    """``perhaps``: seconds of training that comes only where it is needed."""
    seconds = sum(step.seconds for step in steps)
    if not seconds:
        return []
    more = f", and {spoken(perhaps)} of training where calibration alone loses too much" if perhaps else ""
    return [
        f"Time: about {spoken(seconds)} of training and testing{more}, by a training step measured here; writing and timing "
        "files comes on top."
    ]


def spoken(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _proof_lines(job: Job) -> list[str]:
    """What the paired test over this many images can and cannot tell."""
    n, limit = len(job.data.test), job.recipe.limits.max_drop
    usual, best = provable_fall(n, CHANGED), provable_fall(n, 0.0)
    text = f"Proof: {n:,} test images can exclude a fall of {100 * usual:.1f} points where {CHANGED:.0%} of them change class"
    text += f" ({100 * best:.2f} where none does); the limit is {100 * limit:g}"
    if usual <= limit:
        return [f"{text}: enough."]
    needed = images_to_prove(limit, CHANGED)
    more = f", which needs about {numbers.count(needed)} images" if needed else ", which no number of images can prove"
    return [f"{text}{more}."]
