"""How long the rows of a run will take, by steps measured on this machine before any of them is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.calib_data import Part
from edgewise.errors import EdgewiseError
from edgewise.measure.answers import compute_logits
from edgewise.measure.cost.totals import count_costs
from edgewise.run.grids import share_grids
from edgewise.run.job import Job
from edgewise.run.session import float_candidates
from edgewise.stage import Stage, stage_name
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.separate import Separate
from edgewise.stages.training.pace import Clock, Pace, measure_pace
from edgewise.stages.training.settings import Training

_SECONDS = 2.0
"""For which each kind of step is measured."""
_FEW = 8
"""Images by which it is found how many can be measured."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the report to come."""

    name: str
    seconds: float
    """An estimate, from measured steps of the network as it comes; 0 for what the store holds."""
    least: float
    """What it may come down to where the network is cut before it; equal to ``seconds`` where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Every row to come, and what was measured for it."""

    steps: tuple[Step, ...]
    paces: tuple[Pace, ...]
    """Of each kind of training."""


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What is left of a network's work: between ``least`` (0: nobody knows before) and ``most``."""

    least: float = 1.0
    most: float = 1.0

    def times(self, other: _Share) -> _Share:
        return _Share(least=self.least * other.least, most=self.most * other.most)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row, with the stage that makes it and what earlier ones left of the network."""

    name: str
    stage: Stage | None
    share: _Share


def estimate_run(network: nn.Module, job: Job, stored_rows: int) -> Estimate:
    """The rows of ``job``, whose first ``stored_rows`` the store holds; ``network`` is its baseline, whatever its weights."""
    rows = _rows_to_come(network, job)
    if stored_rows == len(rows):
        return Estimate(steps=tuple(Step(name=row.name, seconds=0.0, least=0.0) for row in rows), paces=())
    paces, test = _Paces(network, job), len(job.data.test) * _measure_test(network, job)
    steps = []
    for index, row in enumerate(rows):
        least, most = (0.0, 0.0) if index < stored_rows else _training_seconds(row, paces, job)
        testing = 0.0 if index < stored_rows else test
        most += testing * row.share.most
        steps.append(Step(name=row.name, seconds=most, least=least + testing * row.share.least))
    return Estimate(steps=tuple(steps), paces=tuple(paces.known.values()))


def _rows_to_come(network: nn.Module, job: Job) -> list[_Row]:
    """Every row to come, in order."""
    recipe, share = job.recipe, _Share()
    rows = [_Row(name="baseline", stage=None if job.weights is not None else recipe.baseline, share=share)]
    for stage in recipe.stages:
        rows.append(_Row(name=stage_name(stage), stage=stage, share=share))
        share = share.times(_left_by(stage, network, job))
    for _, group in share_grids(job.targets):
        quantize = recipe.quantize
        if quantize is not None:
            control = quantize.control and quantize.training is not None
            rows += [_Row(name="calibrate", stage=None, share=share)] if control else []
            rows.append(_Row(name="quantize", stage=quantize, share=share))
        for precision, able in float_candidates(recipe.candidates, group):
            rows += [_Row(name=f"{target.name} {precision or 'float'}", stage=None, share=share) for target in able]
        if not recipe.candidates or "int8" in recipe.candidates:
            names = [target.name if quantize is None else f"{target.name} int8" for target in group]
            rows += [_Row(name=name, stage=None, share=share) for name in names]
    return rows


def _left_by(stage: Stage, network: nn.Module, job: Job) -> _Share:
    """What a stage leaves of a network's work, as far as its settings say: a cut network of half the multiply-accumulates
    trains in half the time at best."""
    if isinstance(stage, RemoveBlocks) and stage.blocks:
        return _share_without(stage.blocks, network, job)
    if isinstance(stage, Prune):
        shares = [stage.macs, stage.latency, None if stage.channels is None else stage.channels**2]
        return _Share(least=next((share for share in shares if share is not None), 0.0))
    if isinstance(stage, RemoveBlocks):
        return _Share(least=stage.latency or 0.0)
    return _Share(least=0.0) if isinstance(stage, Separate) else _Share()


def _share_without(names: Sequence[str], network: nn.Module, job: Job) -> _Share:
    """The share of the multiply-accumulates that a network without these blocks has."""
    from edgewise.stages.remove_blocks.find import find_blocks
    from edgewise.stages.remove_blocks.plan import without_blocks

    blocks = [block for block in find_blocks(network, job.images()) if block.name in names]
    try:
        shallow = count_costs(without_blocks(network, blocks), job.data.shape).macs
    except EdgewiseError:
        return _Share(least=0.0)  # the step itself will say what is wrong
    share = shallow / max(1, count_costs(network, job.data.shape).macs)
    return _Share(least=share, most=share)


def _training_seconds(row: _Row, paces: _Paces, job: Job) -> tuple[float, float]:
    """Seconds of training in a row, at least and at most."""
    stage, images = row.stage, len(job.data.train)
    least = most = 0.0
    training = getattr(stage, "training", None)
    if isinstance(training, Training):
        epoch = min(images, training.steps * training.batch_size) if training.steps else images
        views = min(training.views or training.epochs, training.epochs) if training.distill else 0
        pace, times = paces.of(training), getattr(stage, "trials", 1)
        answers = views * epoch * pace.ask
        optional = isinstance(stage, Quantize) and stage.when_needed
        least = 0.0 if optional else training.epochs * epoch * pace.train * row.share.least + answers
        most = times * (training.epochs * epoch * pace.train * row.share.most + answers)
    steps, batch = getattr(stage, "recover_steps", 0), getattr(stage, "recover_batch", 0)
    if steps:
        pace = paces.of(Training(epochs=1, lr=1e-3, batch_size=batch, distill=0.5))
        recovery = _left_by(stage, paces.network, job) if stage is not None else _Share()
        own = steps * batch * pace.train
        least += own * row.share.least * recovery.least + steps * batch * pace.ask
        most += own * row.share.most * recovery.most + steps * batch * pace.ask
    return least, most


class _Paces:
    """The pace of each kind of training, measured once."""

    def __init__(self, network: nn.Module, job: Job) -> None:
        self.network, self.job = network, job
        self.known: dict[tuple[Any, ...], Pace] = {}

    def of(self, training: Training) -> Pace:
        """The pace of a training like this one."""
        kind = (
            training.batch_size, training.precision, training.channels_last, training.optimizer, training.augment,
            bool(training.distill), training.mirrored_teacher,
        )  # fmt: skip
        if kind not in self.known:
            job = self.job
            self.known[kind] = measure_pace(self.network, training, job.data, job.spec, job.recipe.device, _SECONDS)
        return self.known[kind]


def _measure_test(network: nn.Module, job: Job) -> float:
    """Seconds that testing one image takes, reading it included."""
    clock = Clock(torch.device("cpu"))

    def test(most: int) -> float:
        part = _First(job.data.test, most)
        batch = None if job.by_batches else 1
        return clock.time(lambda: compute_logits(network, part, job.spec, batch=batch)) / len(part)

    test(_FEW)
    each = test(_FEW)
    return min(each, test(max(_FEW, int(_SECONDS / 2 / max(each, 1e-9)))))


@dataclass(frozen=True)
class _First:
    """The first images of a part."""

    part: Part
    most: int

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.part.labels[: self.most]

    def __len__(self) -> int:
        return min(self.most, len(self.part))

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index``, uint8 [B, C, H, W]."""
        return self.part.batch(index)
