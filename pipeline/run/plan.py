"""The plan of a run, told before any work: what was found, the steps, about how long, and what the test set can prove."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgewise.measure.statistics import images_to_prove, provable_fall
from edgewise.network.start import begin_network
from edgewise.report.watch import Watch
from edgewise.run import provenance
from edgewise.run.estimate import Estimate, Step, estimate_run
from edgewise.run.job import Job
from edgewise.run.steps import Steps
from edgewise.store.entries import Store

CHANGED = 0.03
"""Share of the test images that change class where a network is compressed and keeps its accuracy: a usual one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do."""

    lines: tuple[str, ...]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    """What should not be missed, and what to do about it."""

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "lines": list(self.lines),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "warnings": list(self.warnings),
        }


def make_plan(job: Job) -> Plan:
    """Look at everything and measure a few steps of each kind of training; nothing is kept."""
    load = read_load()  # before anything of this run adds to it
    network = begin_network(job.base, job.images()).model
    kept_steps = Steps(job=job, store=Store(job.store), watch=Watch(quiet=True)).count_kept()
    costs = estimate_run(network, job, kept_steps)
    lines = [
        *_describe_lines(network, job),
        *_images_lines(job),
        _steps_line(costs.steps, kept_steps),
        *_time_line(costs),
        *_proof_lines(job),
    ]
    warnings = (*job.data.cautions, *_crowding(costs, load))
    return Plan(lines=tuple(lines), steps=costs.steps, warnings=warnings)


def _describe_lines(network: nn.Module, job: Job) -> list[str]:
    data = job.data
    params = sum(parameter.numel() for parameter in network.parameters())
    shape = "×".join(map(str, data.shape))
    weights = (
        f"weights from {job.weights}, every tensor fits" if job.weights else "no weights given: a baseline is trained"
    )
    return [
        f"Model: {job.recipe.model}, {params:,} parameters, {len(data.classes):,} classes; {weights}.",
        f"Data: {data.name}, {len(data.train):,} training, {len(data.calib):,} calibration and {len(data.test):,} test images of {shape}.",
    ]


def _images_lines(job: Job) -> list[str]:
    """How images are prepared, each setting with where it was said, and what there is to say of them."""
    return [f"Fed: {'; '.join(provenance.describe_feeding(job.spec, job.data))}.", *job.data.notes]


def _steps_line(steps: Sequence[Step], stored_steps: int) -> str:
    first = "The first is" if stored_steps == 1 else f"The first {stored_steps} are"
    note = f" {first} in the store." if stored_steps else ""
    return f"Steps: {', '.join(step.name for step in steps)}.{note}"


def _time_line(costs: Estimate) -> list[str]:
    """How long training and testing takes, and by what that is estimated."""
    most, least = (sum(getattr(step, name) for step in costs.steps) for name in ("seconds", "least"))
    if not most:
        return []
    basis = ""
    if costs.paces:
        kinds = dict.fromkeys(f"{_images_words(pace.batch)} in {pace.precision}" for pace in costs.paces)
        basis = f" (warm training steps of {' and of '.join(kinds)}, measured here)"
    text = f"Time: {_span_words(least, most)} of training and testing{basis}"
    if least < _SAME * most:
        text += ", the less where a step shrinks the network or finds that it need not train"
    text += "; writing and timing files comes on top"
    slowdown = max((pace.slowed for pace in costs.paces), default=1.0)
    others = f"; others use this machine: {slowdown:.1f} times as long while they do" if slowdown > _DISTURBED else ""
    return [f"{text}{others}."]


def read_load() -> float:
    """Programs that were at work in the last minute, for each processor; 0 where the system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def _crowding(costs: Estimate, load: float) -> list[str]:
    """That several threads train on processors that others use: each waits for the slowest at every layer."""
    threads, slowed = torch.get_num_threads(), max((pace.slowed for pace in costs.paces), default=1.0)
    if threads == 1 or not costs.paces or (load < _CROWDED and slowed < _DISTURBED):
        return []
    return [
        f"others use this machine ({load:.1f} programs at work for each processor), and the {threads} threads that train here wait "
        "for each other, which can take many times as long. A single one waits for nobody: OMP_NUM_THREADS=1 before the command"
    ]


_CROWDED = 0.6
"""Programs at work for each processor from which on several threads get into each other's way."""


def _images_words(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


_DISTURBED = 1.3
"""Times as long from which on it is told that others use the machine."""
_SAME = 0.8
"""Share from which two durations are told as one."""
_KNOWN = 0.1
"""Below this share of the longest the shortest duration says nothing."""


def _span_words(least: float, most: float) -> str:
    """What a run takes: one duration, two, or the longest."""
    if least >= _SAME * most:
        return f"about {duration_words(most)}"
    return (
        f"at most about {duration_words(most)}"
        if least < _KNOWN * most
        else f"{duration_words(least)} to {duration_words(most)}"
    )


def duration_words(seconds: float) -> str:
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
    images = images_to_prove(limit, CHANGED)
    more = f", which needs about {images:,} images" if images else ", which no number of images can prove"
    return [f"{text}{more}."]
