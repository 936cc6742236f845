"""How much accuracy each group of channels costs when it alone is pruned: the ground on which ratios are set."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.errors import RequestError
from pipeline.images import logits
from pipeline.prune import plan
from pipeline.prune.budget import couple, cut_and_check
from pipeline.prune.coupling import Group
from pipeline.prune.importance import score

if TYPE_CHECKING:
    from pipeline.prune import Prune
    from pipeline.recipe import Context


def sensitivity(model: nn.Module, how: Prune, ctx: Context, ratios: Sequence[float]) -> dict[str, dict[float, float]]:
    """Group -> ratio -> top-1 (a fraction) on the calibration part with that share of the group's channels removed.

    ``how`` says which layers are kept and what makes a channel important; its budget, rounding and scope play no part.
    Ratio 0 is always there: the untouched network. At least one block of every group stays, so that the largest ratios
    of a narrow group may give the same accuracy. ``model`` is left as it was. Raises RequestError for a ratio outside
    0 … 1 and StageError where nothing can be pruned.
    """
    wrong = [ratio for ratio in ratios if not 0 <= ratio < 1]
    if wrong:
        raise RequestError(f"a ratio of a sensitivity scan must lie in 0 … 1, 1 excluded, found {wrong}")
    whole = copy.deepcopy(model).eval().requires_grad_(True)
    groups = couple(whole, how, ctx).groups
    scores = score(how.importance, whole, groups, ctx, how.images)
    untouched = _top1(whole, ctx)
    scan = ctx.track(list(zip(groups, scores, strict=True)), "sensitivity of layers", len(groups))
    return {group.name: {0.0: untouched} | _curve(whole, group, ranked, ctx, ratios) for group, ranked in scan}


def _curve(whole: nn.Module, group: Group, scores: Tensor, ctx: Context, ratios: Sequence[float]) -> dict[float, float]:
    curve: dict[float, float] = {}
    for ratio in sorted({ratio for ratio in ratios if ratio > 0}):
        removed = plan.weakest([scores], (min(round(ratio * group.blocks), group.blocks - 1),))
        trial = copy.deepcopy(whole)
        cut_and_check(trial, [group], removed, ctx)
        curve[ratio] = _top1(trial, ctx)
    return curve


def _top1(model: nn.Module, ctx: Context) -> float:
    part = ctx.data.calib
    weight = next(model.parameters())
    found = logits(lambda images: model(images.to(weight.device)), part, ctx.spec).argmax(1)
    return float((found == part.labels).float().mean())
