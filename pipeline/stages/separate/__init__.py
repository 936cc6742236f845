"""Dense convolutions of a trained network replaced by cheaper forms that are fitted to them.

*depthwise*: a depthwise K x K convolution with m filters per input channel and a pointwise one after it take
m·(K²·Cin + Cin·Cout) multiply-accumulates a pixel where the dense one takes K²·Cin·Cout (Howard et al. 2017,
arXiv 1704.04861, section 3.1). ``fit`` states the fit.

*spatial*: a K x 1 and a 1 x K convolution with M channels between take K·M·(Cin + Cout) (Jaderberg et al. 2014,
arXiv 1405.3866). *stacked*: (K − 1) / 2 convolutions of 3 x 3, of the same receptive field (Simonyan and Zisserman
2014, arXiv 1409.1556, section 2.3). ``chain`` states both fits.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import nn

from edgewise.errors import RequestError, StageError
from edgewise.measure.batches import images_at_once
from edgewise.network.norm_pairs import find_norms
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.fitting.batch_norms import reestimate_norms
from edgewise.stages.fitting.image_batches import BATCH, draw_batches
from edgewise.stages.fitting.least_squares import Fitted, Moments
from edgewise.stages.separate.average_pool import AveragePool
from edgewise.stages.separate.budget import Judge, price_candidates, spend_budget
from edgewise.stages.separate.forms import Form, Into, bias_of, form_of
from edgewise.stages.separate.plan import (
    Candidate,
    Wishes,
    check_names,
    choose_layers,
    load_or_make_plan,
    plan_facts,
    refuse_unfit,
    survey_layers,
    undecided_candidates,
)
from edgewise.stages.separate.pooled_head import PooledHead
from edgewise.stages.separate.substitute import Swap
from edgewise.stages.separate.timing import layer_times
from edgewise.stages.training.blockwise import distill_if_better

__all__ = ["AveragePool", "Candidate", "PooledHead", "Separate"]


_JUDGED = 512
"""Calibration images on which it is judged whether distillation helped."""


@check_fields
@dataclass(frozen=True, kw_only=True)
class Separate:
    """Replaces dense convolutions by separable (or stacked) ones that start as the best fit of what was trained."""

    into: Into = "depthwise"
    """depthwise: K x K depthwise, then 1 x 1; spatial: K x 1, then 1 x K; stacked: 5 x 5 and larger by 3 x 3 ones."""
    rank: Annotated[int, Interval(ge=1, le=121)] = 1
    """Of depthwise: filters per input channel, m, the rank at which each input channel's filters are approximated."""
    share: Annotated[float, Interval(ge=0.01, le=1)] = 0.5
    """Of spatial and stacked: the largest share of a layer's multiply-accumulates left; the channels between follow."""
    init: Init = "outputs"
    """outputs: least squares on the layer's outputs; kernel: on its weights; fresh: random, nothing is kept (the same
    layers are chosen, as the control)."""
    sweeps: Annotated[int, Interval(ge=0, le=1000)] = 3
    """How often the output fit alternates between the parts; 0: the last part only (chains: the kernel fit)."""
    images: Annotated[int, Interval(ge=2, le=1_000_000)] = 512
    """Training images the outputs are fitted on (as many calibration images judge the fit)."""
    positions: Annotated[int, Interval(ge=64, le=10_000_000)] = 16384
    """Output positions used per layer, drawn at random from those images."""
    max_error: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """Largest relative error of a layer's outputs on calibration images; a layer with more stays dense."""
    max_drop: Annotated[float, Interval(ge=0, le=1)] | None = None
    """The accuracy budget: largest fall of top-1 on the calibration images, right after the fit and before anything is
    trained. Layers join in the order of their cost per time saved. None: no budget, every layer is judged alone."""
    max_layers: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    """How many layers are replaced at most, those with the least cost for what they save; None: all that may."""
    layers: tuple[str, ...] | None = None
    """Only these are considered; None: every dense convolution larger than one pixel."""
    keep: tuple[str, ...] = ()
    """These stay dense."""
    measure_time: bool = True
    """Whether each layer is timed, as it is against its new form, on the declared runtime, and stays where it would not
    be faster. A plan that rests on a clock may come out differently when a lost step is repeated; False: what a layer
    saves is counted in multiply-accumulates."""
    recover_steps: Annotated[int, Interval(ge=0, le=10_000_000)] = 0
    """Training steps in which every new block learns to answer as the old one did; 0: none."""
    recover_lr: Annotated[float, Interval(ge=1e-12, le=100)] = 3e-3
    """Their learning rate at the start."""
    recover_batch: Annotated[int, Interval(ge=2, le=1_000_000)] = 128
    """Images per step."""

    def __post_init__(self) -> None:
        check_stage(self)

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(cuts=True, times=self.measure_time, learns_from="images", decides=True)

    def milder(self) -> Separate | None:
        """The same with half of the layers, of the drop, or of the error that a layer's fit may have."""
        if self.max_layers is not None:
            return dataclasses.replace(self, max_layers=self.max_layers // 2) if self.max_layers > 1 else None
        if self.max_drop:
            return dataclasses.replace(self, max_drop=self.max_drop / 2)
        return dataclasses.replace(self, max_error=self.max_error / 2)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A copy of ``model`` with the planned layers replaced, fitted, and taught where ``recover_steps`` asks for it.

        Every candidate's verdict is told through ``ctx.note`` and kept among the facts. Raises StageError when no layer
        can be replaced.
        """
        teacher = _on_device(model, ctx)
        plan = load_or_make_plan(ctx.scratch, _plan_subject(self, teacher, ctx), lambda: self.plan(model, ctx))
        for candidate in plan:
            ctx.note(candidate.line())
        names = [candidate.name for candidate in plan if candidate.accepted]
        if not names:
            raise StageError(_nothing_reason(plan))
        judge = Judge(ctx=ctx)
        states = judge.states(before=teacher)
        swap = self._swap(teacher, plan, ctx)
        student = self._substituted(teacher, names, swap, ctx)
        states |= judge.states(substituted=student)
        if self.recover_steps:
            points = {swap.norms.get(name, name): None for name in names}
            images = draw_batches(ctx.data.calib, _JUDGED, ctx, teacher)
            distill_if_better(
                student, teacher, points, ctx, images, steps=self.recover_steps, lr=self.recover_lr,
                batch=self.recover_batch,
            )  # fmt: skip
            states |= judge.states(distilled=student)
        timed_on = ctx.runtime if any(candidate.dense_ms is not None for candidate in plan) else None
        told_plan = plan_facts(self.into, plan, states, max_drop=self.max_drop, timed_on=timed_on, threads=ctx.threads)
        ctx.fact("plan", told_plan)
        return _as_it_was(student, model)

    def plan(self, model: nn.Module, ctx: Context) -> tuple[Candidate, ...]:
        """The verdict on every spatial convolution of ``model``, in order of execution.

        Raises RequestError for a name in ``layers`` or ``keep`` that is none of them.
        """
        teacher = _on_device(model, ctx)
        wishes = Wishes(layers=self.layers, keep=self.keep, max_error=self.max_error, max_layers=self.max_layers)
        candidates = survey_layers(teacher, draw_batches(ctx.data.calib, 1, ctx)[0], self._form)
        check_names(self.layers or (), candidates, "layers")
        check_names(self.keep, candidates, "keep")
        candidates = refuse_unfit(candidates, wishes)
        fitting, judging = (draw_batches(part, self.images, ctx, teacher) for part in (ctx.data.train, ctx.data.calib))
        swap = self._swap(teacher, candidates, ctx)
        fits = swap.alone(teacher, [c.name for c in undecided_candidates(candidates)], fitting, judging)
        candidates = refuse_unfit(
            [replace(c, error=fits[c.name][1]) if c.name in fits else c for c in candidates], wishes
        )
        candidates = refuse_unfit(self._timed(candidates, teacher, swap, ctx), wishes)
        if self.max_drop is None:
            return choose_layers(candidates, wishes)
        judge = Judge(ctx=ctx)
        candidates = price_candidates(candidates, teacher, {name: fit for name, (fit, _) in fits.items()}, swap, judge)
        return spend_budget(
            candidates, teacher, swap, fitting, judge, max_drop=self.max_drop, max_layers=self.max_layers
        )

    @property
    def _form(self) -> Form:
        return form_of(self.into, self.rank, self.share)

    def _swap(self, teacher: nn.Module, plan: Sequence[Candidate], ctx: Context) -> Swap:
        norms = find_norms(teacher, draw_batches(ctx.data.calib, 2, ctx)[0]).pairs
        at_once = images_at_once(teacher, ctx.input_shape, BATCH)
        batches = -(-min(self.images, len(ctx.data.train)) // at_once)
        return Swap(
            form=self._form,
            method=self._fit,
            middles={c.name: c.middle for c in plan},
            norms=norms,
            positions=-(-self.positions // batches),
            seed=ctx.seed,
        )

    def _timed(self, candidates: list[Candidate], teacher: nn.Module, swap: Swap, ctx: Context) -> list[Candidate]:
        shapes = {c.name: c.input_shape for c in undecided_candidates(candidates)}
        if not (self.measure_time and shapes):
            return candidates
        times = layer_times(teacher, swap.done(teacher, shapes), shapes, ctx)
        return [
            replace(c, dense_ms=t.dense_ms, new_ms=t.new_ms, ratio_ci95=t.ratio_ci95) if (t := times.get(c.name)) else c
            for c in candidates
        ]

    def _substituted(self, teacher: nn.Module, names: list[str], swap: Swap, ctx: Context) -> nn.Module:
        student = swap.done(teacher, names)
        batches = draw_batches(ctx.data.train, self.images, ctx, teacher)
        if self.init != "fresh":
            for name in ctx.track(names, "fitting", len(names)):
                swap.fit(student, teacher, name, batches)
        if self.init != "outputs":
            reestimate_norms(student, [swap.norms[name] for name in names if name in swap.norms], batches)
        return student

    def _fit(self, layer: nn.Conv2d, middle: int, moments: Moments) -> Fitted:
        start = self._form.kernel_fit(layer.weight.detach(), bias_of(layer), middle)
        return start if self.init == "kernel" else self._form.output_fit(start, moments, self.sweeps)


def _on_device(model: nn.Module, ctx: Context) -> nn.Module:
    return copy.deepcopy(model).to(ctx.device).eval()


def _as_it_was(student: nn.Module, model: nn.Module) -> nn.Module:
    """On the device and in the mode of the network it came from."""
    first = next(model.parameters())
    return student.to(first.device).train(model.training)


def _plan_subject(stage: Separate, teacher: nn.Module, ctx: Context) -> str:
    """What a plan belongs to, so that an interrupted step takes up its own and no other."""
    content = hashlib.sha256(f"{stage} {ctx.seed} {ctx.data.digest} {ctx.runtime} {ctx.threads}".encode())
    for tensor in teacher.state_dict().values():
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _nothing_reason(plan: Sequence[Candidate]) -> str:
    if not plan:
        return "no convolution here has a kernel larger than one pixel and mixes channels; leave this step out"
    reasons = "; ".join(f"{c.name}: {c.reason}" for c in plan)
    return f"no convolution can be replaced ({reasons}); relax max_error, max_drop or keep, or leave this step out"


Init = Literal["outputs", "kernel", "fresh"]


def check_stage(stage: Separate) -> None:
    """Raise RequestError for fields that contradict each other."""
    if stage.into != "depthwise" and stage.rank != 1:
        raise RequestError(f"rank belongs to into='depthwise'; with {stage.into!r} set share, found rank={stage.rank}")
    both = sorted(set(stage.layers or ()) & set(stage.keep))
    if both:
        raise RequestError(f"layers and keep both name {', '.join(both)}; name each layer in one of them")
