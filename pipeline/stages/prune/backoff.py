"""Prunes as far as an accuracy budget allows: the whole reduction first, then bisection between too much and enough."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from edgewise.errors import StageError
from edgewise.stages.prune.budget import Spent
from edgewise.stages.prune.sensitivity import Reading, read_network

if TYPE_CHECKING:
    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings


Make = Callable[[float, "Context"], tuple[nn.Module, Spent]]
"""Prunes a copy by a part (above 0, at most 1) of the reduction asked for."""


@dataclass(frozen=True)
class _Trial:
    part: float
    """Of the reduction asked for."""
    outcome: str
    drop: float | None = None
    """Top-1 lost on the calibration images, a fraction; None where the trial could not be made."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def back_off(model: nn.Module, how: Settings, ctx: Context, make: Make) -> tuple[nn.Module, Spent]:
    """The most pruned network of ``how.trials`` trials that loses at most ``how.max_drop``.

    Every trial is told as a fact and judged on all calibration images. Raises StageError, with all trials, where none
    is within the drop.
    """
    assert how.max_drop is not None
    images = len(ctx.data.calib)
    before = read_network(model, images, ctx)
    best: tuple[nn.Module, Spent] | None = None
    enough, too_much, part = 0.0, 1.0, 1.0
    trials: list[_Trial] = []
    for number in range(how.trials):
        trial, spending = _try_part(part, number, before, how, ctx, make)
        trials.append(trial)
        ctx.note(
            f"trial {number + 1}: {trial.outcome}"
            + ("" if trial.drop is None else f", {_loss_words(trial.drop, images)}")
        )
        if spending is not None and trial.drop is not None and trial.drop <= how.max_drop:
            best, enough = spending, part
        else:
            too_much = part
        if enough == 1.0:
            break
        part = (enough + too_much) / 2
    facts = {"max_drop": how.max_drop, "n": images, "top1_before": before.top1, "trials": [t.to_json() for t in trials]}
    if best is None:
        trials_text = "; ".join(
            f"{trial.part:.0%} of the reduction: "
            + (trial.outcome if trial.drop is None else _loss_words(trial.drop, images))
            for trial in trials
        )
        raise StageError(
            f"no trial lost at most {100 * how.max_drop:.2f} points ({trials_text}). Allow more, give each trial some training, "
            "or ask for less"
        )
    pruned, spent = best
    return pruned, dataclasses.replace(spent, facts={**spent.facts, "accuracy_budget": facts})


def _try_part(
    part: float, number: int, before: Reading, how: Settings, ctx: Context, make: Make
) -> tuple[_Trial, tuple[nn.Module, Spent] | None]:
    folder = ctx.scratch / f"trial-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    here = dataclasses.replace(ctx, scratch=folder)
    try:
        pruned, spent = make(part, here)
    except StageError as error:
        return _Trial(part, str(error)), None
    if how.training is not None:
        from edgewise.stages.training.loop import fit
        from edgewise.stages.training.teaching import teacher_for

        pruned = copy.deepcopy(pruned)
        fit(pruned, how.training, here, teacher_for(how.training, here))
    after = read_network(pruned, len(ctx.data.calib), ctx)
    return _Trial(part, spent.summary, before.top1 - after.top1), (pruned, spent)


def _loss_words(drop: float, images: int) -> str:
    return f"{100 * drop:.2f} points lost (n = {images:,})"
