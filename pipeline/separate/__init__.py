"""Dense convolutions of a trained network replaced by depthwise-separable ones that are fitted to them.

A K x K convolution takes K²·Cin·Cout multiply-accumulates a pixel, a depthwise K x K one with m filters per input
channel and a pointwise one after it m·(K²·Cin + Cin·Cout) (Howard et al. 2017, arXiv 1704.04861, section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from calib_data import Part
from pipeline.errors import RequestError, StageError
from pipeline.fold import find_norms
from pipeline.images import normalise
from pipeline.norms import reestimate
from pipeline.recipe import Context, in_range
from pipeline.separate.fit import Factors, Moments, kernel_fit, output_fit
from pipeline.separate.plan import Candidate, check_names, judge, survey
from pipeline.separate.recover import imitate
from pipeline.separate.substitute import bias_of, errors, fit_in_turn, replaced
from pipeline.separate.timing import layer_times

__all__ = ["Candidate", "Separate"]

Init = Literal["outputs", "kernel", "fresh"]

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Separate:
    """Replaces dense convolutions by depthwise-separable ones that start as the best fit of what was trained."""

    rank: int = 1
    """Depthwise filters per input channel, m: the rank at which each input channel's filters are approximated."""
    init: Init = "outputs"
    """outputs: least squares on the layer's outputs; kernel: on its weights; fresh: random, nothing is kept."""
    sweeps: int = 3
    """How often the output fit alternates between the depthwise and the pointwise half; 0: pointwise only."""
    images: int = 512
    """Training images the outputs are fitted on (as many calibration images judge the fit)."""
    positions: int = 16384
    """Output positions used per layer, drawn at random from those images."""
    max_error: float = 1.0
    """Largest relative error of a layer's outputs on calibration images; a layer with more stays dense."""
    max_layers: int | None = None
    """How many layers are replaced at most, those with the least error per MAC saved; None: all that may."""
    layers: tuple[str, ...] | None = None
    """Only these are considered; None: every dense convolution larger than one pixel."""
    keep: tuple[str, ...] = ()
    """These stay dense."""
    measure_time: bool = False
    """Whether each layer is timed, dense against separable, on the declared runtime, and stays dense where it would not
    be faster. A plan that rests on a clock may come out differently when a lost step is repeated."""
    recover_steps: int = 0
    """Training steps in which every new block learns to answer as the old one did; 0: none."""
    recover_lr: float = 3e-3
    """Their learning rate at the start."""
    recover_batch: int = 128
    """Images per step."""

    def __post_init__(self) -> None:
        if self.init not in get_args(Init):
            raise RequestError(f"init must be one of {', '.join(get_args(Init))}, found {self.init!r}")
        in_range("rank", self.rank, 1, 121)
        in_range("sweeps", self.sweeps, 0, 1000)
        in_range("images", self.images, 2, 1_000_000)
        in_range("positions", self.positions, 64, 10_000_000)
        in_range("max_error", self.max_error, 0, 10)
        in_range("recover_steps", self.recover_steps, 0, 10_000_000)
        in_range("recover_lr", self.recover_lr, 1e-12, 100)
        in_range("recover_batch", self.recover_batch, 2, 1_000_000)
        if self.max_layers is not None:
            in_range("max_layers", self.max_layers, 1, 1_000_000)
        both = sorted(set(self.layers or ()) & set(self.keep))
        if both:
            raise RequestError(f"layers and keep both name {', '.join(both)}; name each layer in one of them")

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A copy of ``model`` with the planned layers replaced, fitted, and taught where ``recover_steps`` asks for it.

        Every candidate's verdict is told through ``ctx.note``. Raises StageError when no layer can be replaced.
        """
        plan = self.plan(model, ctx)
        for candidate in plan:
            ctx.note(candidate.line())
        chosen = [candidate.name for candidate in plan if candidate.accepted]
        if not chosen:
            raise StageError(_nothing(plan))
        teacher = _on_device(model, ctx)
        norms = find_norms(teacher, _images(ctx.data.calib, 2, ctx)[0]).pairs
        student = self._substituted(teacher, chosen, norms, ctx)
        if self.recover_steps:
            points = [norms.get(name, name) for name in chosen]
            imitate(
                student, teacher, points, ctx, steps=self.recover_steps, lr=self.recover_lr, batch=self.recover_batch
            )
        return _as_it_was(student, model)

    def plan(self, model: nn.Module, ctx: Context) -> tuple[Candidate, ...]:
        """The verdict on every spatial convolution of ``model``, in order of execution.

        Raises RequestError for a name in ``layers`` or ``keep`` that is none of them.
        """
        teacher = _on_device(model, ctx)
        found = survey(teacher, _images(ctx.data.calib, 1, ctx)[0], self.rank)
        check_names(self.layers or (), found, "layers")
        check_names(self.keep, found, "keep")
        possible = [c.name for c in self._judged(found, None) if c.accepted]
        fitting, judging = _images(ctx.data.train, self.images, ctx), _images(ctx.data.calib, self.images, ctx)
        wrong = errors(teacher, possible, self._fit, fitting, judging, self._per_batch(fitting), ctx.seed)
        found = [replace(c, error=wrong.get(c.name)) for c in found]
        return self._judged(self._timed(found, teacher, ctx), self.max_layers)

    def _timed(self, found: list[Candidate], teacher: nn.Module, ctx: Context) -> list[Candidate]:
        shapes = {c.name: c.input_shape for c in self._judged(found, None) if c.accepted}
        if not (self.measure_time and shapes):
            return found
        fresh = self._fresh(teacher, shapes, {}, ctx)
        times = layer_times(teacher, fresh, shapes, ctx)
        nothing = (None, None)
        return [
            replace(c, dense_ms=times.get(c.name, nothing)[0], separable_ms=times.get(c.name, nothing)[1])
            for c in found
        ]

    def _fresh(self, teacher: nn.Module, names: Iterable[str], norms: Mapping[str, str], ctx: Context) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            return replaced(teacher, names, self.rank, norms).eval()

    def _judged(self, found: Sequence[Candidate], most: int | None) -> tuple[Candidate, ...]:
        return judge(found, layers=self.layers, keep=self.keep, max_error=self.max_error, max_layers=most)

    def _substituted(self, teacher: nn.Module, chosen: list[str], norms: Mapping[str, str], ctx: Context) -> nn.Module:
        student = self._fresh(teacher, chosen, norms, ctx)
        batches = _images(ctx.data.train, self.images, ctx)
        if self.init != "fresh":
            fit_in_turn(student, teacher, chosen, norms, self._fit, batches, self._per_batch(batches), ctx.seed)
        if self.init != "outputs":
            reestimate(student, [norms[name] for name in chosen if name in norms], batches)
        return student

    def _fit(self, layer: nn.Conv2d, moments: Moments) -> Factors:
        start = kernel_fit(layer.weight.detach(), bias_of(layer), self.rank)
        return start if self.init == "kernel" else output_fit(start, moments, self.sweeps)

    def _per_batch(self, batches: Sequence[Tensor]) -> int:
        return -(-self.positions // len(batches))


def _images(part: Part, count: int, ctx: Context) -> list[Tensor]:
    """Batches of ``count`` images of a part (all where it has fewer), drawn by the seed, normalised, on the device."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(ctx.seed))[:count]
    return [normalise(part.batch(chosen), ctx.spec).to(ctx.device) for chosen in torch.split(order, _BATCH)]


def _on_device(model: nn.Module, ctx: Context) -> nn.Module:
    return copy.deepcopy(model).to(ctx.device).eval()


def _as_it_was(student: nn.Module, model: nn.Module) -> nn.Module:
    """On the device, in the mode and with the frozen parameters of the network it came from."""
    first = next(model.parameters())
    return student.to(first.device).train(model.training)


def _nothing(plan: Sequence[Candidate]) -> str:
    if not plan:
        return "no convolution here has a kernel larger than one pixel and mixes channels; leave this step out"
    reasons = "; ".join(f"{c.name}: {c.reason}" for c in plan)
    return f"no convolution can be made separable ({reasons}); relax max_error or keep, or leave this step out"
