"""The stage that removes whole channels, heads and hidden units, so that what is left is a smaller dense network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

from annotated_types import Interval

from edgewise.errors import RequestError, StageError
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.prune.settings import Budget, Importance, Scope

if TYPE_CHECKING:
    from torch import nn

    from edgewise.stages.prune.budget import Spent
    from edgewise.stages.training.settings import Training


IMPORTANCES: tuple[Importance, ...] = get_args(Importance)

_SHARES = ("channels", "macs", "params", "latency")
_BUDGETS = ("channels", "macs", "params", "bytes", "latency", "milliseconds")
_DEEPEST = 0.05
"""Share of the multiply-accumulates that an accuracy budget alone aims at first."""
_SCAN = (0.25, 0.5, 0.75)


@check_fields
@dataclass(frozen=True, kw_only=True)
class Prune:
    """Structured pruning to a budget: channels, MACs, parameters, bytes, milliseconds on the target, or accuracy.

    Exactly one of ``channels``, ``macs``, ``params``, ``bytes``, ``latency`` and ``milliseconds`` is given, ``max_drop``
    beside it or alone. Time and bytes are those of a float file of the recipe's declared runtime at batch 1.
    """

    channels: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of the channels to keep; a budget is the share that is kept, whatever it limits."""
    macs: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of the multiply-accumulates to keep, for example 1 / 2.57; at most this much is left."""
    params: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of the parameters to keep; at most this much is left."""
    bytes: Annotated[float, Interval(gt=0, le=1e15)] | None = None
    """Below 1, the share of the file's bytes to keep; from 1, so many bytes; at most this much is left."""
    latency: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of the measured time to keep, on the declared runtime."""
    milliseconds: Annotated[float, Interval(gt=0, le=1e9)] | None = None
    """The time of one call on the declared runtime, on this machine."""
    max_drop: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Largest loss of top-1 on the calibration images (0.01 = one point). The reduction is made whole where it costs no
    more, else as much of it as does; without another budget as many multiply-accumulates go as can."""
    trials: Annotated[int, Interval(ge=1, le=1_000_000)] = 6
    """Networks that are tried for ``max_drop``."""
    training: Training | None = None
    """How each of those is trained before it is judged, which the result keeps; None: judged as it is cut."""
    importance: Importance = "l2"
    """What makes a channel worth keeping; random is the control."""
    scope: Scope = "global"
    """global: rank the channels of all layers against each other; layer: take the same share of every layer;
    sensitivity: go by what each layer's loss cost in a scan. A time budget weighs that cost against the time saved."""
    scan: tuple[Annotated[float, Interval(gt=0, lt=1)], ...] = ()
    """Shares at which a sensitivity scan prunes every group alone, for a picture in the report; scope "sensitivity"
    scans at 0.25, 0.5 and 0.75 where none are given."""
    round_to: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    """Leave a multiple of this many channels; vector units and NPUs work in such blocks. None: 8; for a time budget
    eighths of every layer, of which the measured times choose."""
    steps: Annotated[int, Interval(ge=1, le=1_000_000)] = 1
    """Reach the budget in so many equal steps, and look at the importance anew before each."""
    min_layer: Annotated[float, Interval(ge=0, le=0.99)] = 0.1
    """The smallest share of its channels that a single layer keeps."""
    keep: tuple[str, ...] = ()
    """Layers whose output channels are never pruned."""
    shortcuts: bool = True
    """Whether channels that a shortcut carries, where the answers of several layers are added, may go. Without them a
    network keeps more of its answers as it is cut; with them more of its time can be saved."""
    images: Annotated[int, Interval(ge=1, le=1_000_000)] = 512
    """Calibration images that the measures of data (taylor, activation) and a sensitivity scan look at."""
    reestimate: Annotated[int, Interval(ge=0, le=100_000_000)] = 1024
    """Training images on which the batch norms are estimated anew after the cut; 0: they stay as they were."""
    reconstruct: Annotated[int, Interval(ge=0, le=100_000_000)] = 0
    """Training images on which every layer is fitted anew after the cut, to answer as it did (``reconstruct``); the batch
    norms then keep the statistics that those answers have. 0: the weights that are left stay as they were."""
    recover_steps: Annotated[int, Interval(ge=0, le=10_000_000)] = 0
    """Training steps, after that, in which all layers together learn to answer as they did (``imitate``); 0: none."""
    recover_lr: Annotated[float, Interval(ge=1e-12, le=100)] = 3e-3
    """Their learning rate at the start."""
    recover_batch: Annotated[int, Interval(ge=2, le=1_000_000)] = 128
    """Images per step."""

    ratio: InitVar[float | None] = None
    """Refused: it was the share of the channels to remove."""
    max_layer_ratio: InitVar[float | None] = None
    """Refused: it was the largest share of its channels that a layer may lose."""

    def __post_init__(self, ratio: float | None, max_layer_ratio: float | None) -> None:
        _refuse_removed("ratio", "channels", ratio)
        _refuse_removed("max_layer_ratio", "min_layer", max_layer_ratio)
        self._check_budget()
        if self.training is not None and self.max_drop is None:
            raise RequestError("Prune.training is how the trials of max_drop are trained; put a Finetune after Prune")
        if self.scope == "layer" and self.channels is not None and self.channels < self.min_layer:
            raise RequestError(
                f"Prune.channels {self.channels:g} of every layer is less than min_layer {self.min_layer:g}"
            )

    def _check_budget(self) -> None:
        budgets = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1 or (not budgets and self.max_drop is None):
            listing = ", ".join(budgets) or "none"
            raise RequestError(f"Prune wants exactly one of {', '.join(_BUDGETS)}, or max_drop, found {listing}")

    @property
    def traits(self) -> Traits:
        """Times and bytes are those of the declared runtime on this machine."""
        precision = self.training.precision if self.training else None
        fits = self.reconstruct or self.recover_steps
        return Traits(
            cuts=True,
            times=self.timed or self.budget[0] == "bytes",
            precision=precision,
            learns_from="labels" if self.training else "images" if fits else "nothing",
            decides=self.max_drop is not None or bool(self.scan) or self.scope == "sensitivity" or self.looks_at_labels,
        )

    @property
    def looks_at_labels(self) -> bool:
        """Whether its importance is measured by the loss on calibration images."""
        return self.importance == "taylor"

    def milder(self) -> Prune | None:
        """The same with half of the reduction, or of the drop; None for an absolute budget, which has no half."""
        for name in (*_SHARES, "bytes"):
            budget = getattr(self, name)
            if budget is not None and budget < 1:
                return dataclasses.replace(self, **{name: (1 + budget) / 2})
        if self.max_drop and self.bytes is None and self.milliseconds is None:
            return dataclasses.replace(self, max_drop=self.max_drop / 2)
        return None

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A pruned copy of ``model``, which carries the surgery that made it.

        Raises StageError when nothing can be removed, when the budget cannot be met, when a layer would be emptied,
        when no trial is within ``max_drop``, and when the smaller network does not compute what the larger one does
        without the removed channels.
        """
        if "prune" in ctx.spec.cannot:
            raise RequestError(f"{ctx.spec.name} cannot be pruned: {ctx.spec.cannot['prune']}")
        if self.max_drop is None:
            pruned, spending = self._pruned(model, ctx, 1.0)
        else:
            from edgewise.stages.prune.backoff import back_off

            pruned, spending = back_off(model, self, ctx, lambda part, here: self._pruned(model, here, part))
        for name, value in spending.facts.items():
            ctx.fact(name, value)
        ctx.note(spending.summary)
        for before, after in zip(model.modules(), pruned.modules(), strict=True):
            after.training = before.training
        return pruned

    def _pruned(self, model: nn.Module, ctx: Context, part: float) -> tuple[nn.Module, Spent]:
        """A copy, in eval mode, pruned by ``part`` of the reduction; and what became of it."""
        import dataclasses

        from edgewise.network import surgery
        from edgewise.stages.fitting.batch_norms import fit_norms
        from edgewise.stages.prune.budget import spend_budget

        pruned = copy.deepcopy(model).eval().requires_grad_(True)
        spending = spend_budget(pruned, self, ctx, part)
        operation = surgery.difference(model, pruned)
        if not operation.shapes:
            raise StageError(
                f"pruning changed nothing: {spending.summary}. Ask for more, or lower round_to ({self.rounding or 'eighths'})"
            )
        facts = dict(spending.facts)
        if not self.reconstruct:
            facts["norm_images"] = fit_norms(pruned, self.reestimate, ctx)
        if self.reconstruct or self.recover_steps:
            facts |= self._taught(pruned, model, spending, ctx)
        summary = f"pruned {len(operation.attributes)} layers: {spending.summary}"
        return surgery.record(pruned, operation), dataclasses.replace(spending, summary=summary, facts=facts)

    def _taught(self, pruned: nn.Module, model: nn.Module, spent: Spent, ctx: Context) -> dict[str, Any]:
        """Teach ``pruned`` in place to answer as ``model`` does; what came of it, for the report."""
        from edgewise.stages.prune.coupling import outputs_left

        place = next(pruned.parameters()).device
        whole = copy.deepcopy(model).eval().to(ctx.device)
        outputs = outputs_left(whole, spent.cuts)
        pruned.to(ctx.device)
        facts: dict[str, Any] = {}
        if self.reconstruct:
            facts["reconstruction"] = self._reconstructed(pruned, whole, outputs, ctx)
        if self.recover_steps:
            facts["recovery"] = self._recovered(pruned, whole, outputs, ctx)
        pruned.to(place)
        return facts

    def _reconstructed(
        self, pruned: nn.Module, whole: nn.Module, left: Mapping[str, Sequence[int]], ctx: Context
    ) -> dict[str, Any]:
        from edgewise.stages.fitting.image_batches import draw_batches
        from edgewise.stages.fitting.reconstruct import layers_left_alone, reconstruct_layers

        errors = reconstruct_layers(pruned, whole, left, self.reconstruct, ctx)
        ctx.fact("unfitted", layers_left_alone(whole, left, draw_batches(ctx.data.calib, 2, ctx)[0]))
        before, after = (sum(pair[which] for pair in errors.values()) / max(len(errors), 1) for which in (0, 1))
        ctx.note(
            f"{len(errors)} layers fitted anew: relative error of their outputs {before:.2f} -> {after:.2f}, the mean"
        )
        return {name: [*pair] for name, pair in errors.items()}

    def _recovered(
        self, pruned: nn.Module, whole: nn.Module, left: Mapping[str, Sequence[int]], ctx: Context
    ) -> dict[str, Any]:
        from edgewise.stages.prune.recover import recover_by_distillation

        steps = self.recover_steps
        losses = recover_by_distillation(
            pruned, whole, left, ctx, steps=steps, lr=self.recover_lr, batch=self.recover_batch
        )
        return {"steps": steps, "loss": [*losses]}

    @property
    def budget(self) -> tuple[Budget, float]:
        """What is limited, and what is to be left: a share, milliseconds, or bytes where it is 1 or more."""
        kinds: dict[Budget, float | None] = {
            "channels": self.channels,
            "macs": self.macs,
            "params": self.params,
            "bytes": self.bytes,
            "time": self.latency,
            "milliseconds": self.milliseconds,
        }
        return next(((kind, value) for kind, value in kinds.items() if value is not None), ("macs", _DEEPEST))

    @property
    def rounding(self) -> int | None:
        """Widths are multiples of this; None: eighths."""
        return 8 if self.round_to is None and not self.timed else self.round_to

    @property
    def timed(self) -> bool:
        """Whether the budget is one of time."""
        return self.budget[0] in ("time", "milliseconds")

    @property
    def scanned(self) -> tuple[float, ...]:
        """The shares at which a sensitivity scan is made; none: there is no scan."""
        return self.scan or (_SCAN if self.scope == "sensitivity" else ())


def _refuse_removed(old: str, new: str, value: float | None) -> None:
    """Raise RequestError where a share to remove is given; every share is one that is kept."""
    if value is not None:
        raise RequestError(f"Prune.{old} was a share to remove; shares are kept now: say {new}={round(1 - value, 6):g}")
