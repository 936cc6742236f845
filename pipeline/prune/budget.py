"""Spends a pruning budget: step by step, the least important channels first, each cut checked by running it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.analyze import count
from pipeline.errors import StageError
from pipeline.prune import plan
from pipeline.prune.coupling import Coupling, Group, Removed, averages, cut, silence, trace
from pipeline.prune.importance import score

if TYPE_CHECKING:
    from pipeline.prune import Prune
    from pipeline.recipe import Context

_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between the cut network and the one that ignores the channels."""


@dataclass(frozen=True)
class _Whole:
    """The network before the first step."""

    amount: float
    """Of what the budget limits."""
    widths: Mapping[str, int]
    """Channels of every group."""


def spend(model: nn.Module, how: Prune, ctx: Context) -> str:
    """Prune ``model`` in place (in eval mode, every parameter requiring grad), and say in words what is left.

    Raises StageError as ``Prune`` does.
    """
    kind, wanted = how.budget
    coupling = couple(model, how, ctx)
    widths = {group.name: group.width for group in coupling.groups}
    whole = _Whole(_amount(kind, model, coupling.groups, ctx), widths)
    for step in range(1, how.steps + 1):
        scores = score(how.importance, model, coupling.groups, ctx, how.images)
        share = 1 - (1 - wanted) * step / how.steps
        counts = _choose(model, how, ctx, coupling.groups, scores, whole, share)
        cut_and_check(model, coupling.groups, plan.weakest(scores, counts), ctx)
        coupling = couple(model, how, ctx)
    left = _amount(kind, model, coupling.groups, ctx)
    return f"{kind} {whole.amount:,.0f} -> {left:,.0f} ({left / whole.amount:.1%}, wanted {wanted:.1%})"


def cut_and_check(model: nn.Module, groups: Sequence[Group], removed: Removed, ctx: Context) -> None:
    """Cut ``model`` in place, and make sure that it computes what it did with the removed channels ignored.

    Raises StageError where it does not, or does not run: the network mixes channels in a way that was not understood.
    """
    before = copy.deepcopy(model)
    cut(model, groups, removed)
    problem = _problem(before, model, groups, removed, ctx)
    if problem is None:
        return
    culprits = []
    for group, blocks in zip(groups, removed, strict=True):
        alone = copy.deepcopy(before)
        cut(alone, [group], [blocks])
        if _problem(before, alone, [group], [blocks], ctx) is not None:
            culprits.append(group.name)
    where = f"; it arises at {', '.join(culprits)}: name them in keep" if culprits else ""
    raise StageError(f"the network mixes channels in a way that pruning does not see: {problem}{where}")


def _problem(
    before: nn.Module, after: nn.Module, groups: Sequence[Group], removed: Removed, ctx: Context
) -> str | None:
    """What is wrong with ``after``, which was cut from ``before``; None if nothing."""
    ignoring = copy.deepcopy(before)
    silence(ignoring, groups, removed)
    images = _noise(before, ctx, 2)
    with torch.no_grad():
        expected = ignoring(images)
        try:
            found = after(images)
        except RuntimeError as error:
            return f"the pruned network does not run ({error})"
    if averages(groups, removed) or _same(found, expected):
        return None
    worst = float((found - expected).abs().max())
    return f"logits differ by {worst:.3g} from those of the network with the removed channels ignored"


def _choose(
    model: nn.Module,
    how: Prune,
    ctx: Context,
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    whole: _Whole,
    share: float,
) -> plan.Counts:
    """How many blocks of each group go, so that at most ``share`` of the whole network is left."""
    moves = plan.moves(groups, scores, plan.Rules(how.scope, how.round_to, how.max_layer_ratio, whole.widths))
    kind, _ = how.budget

    def left(counts: plan.Counts) -> float:
        trial, removed = copy.deepcopy(model), plan.weakest(scores, counts)
        cut(trial, groups, removed)
        gone = sum(group.block_size * len(blocks) for group, blocks in zip(groups, removed, strict=True))
        return (_amount(kind, trial, groups, ctx) - (gone if kind == "channels" else 0)) / whole.amount

    if how.ratio is not None and how.scope == "layer":
        return plan.uniform(moves, groups, 1 - share / left((0,) * len(groups)))
    if how.ratio is not None and how.max_layer_ratio == 1:
        plan.refuse_emptying(groups, scores, how.ratio)
    return plan.meet(moves, len(groups), left, share)


def _amount(kind: str, model: nn.Module, groups: Sequence[Group], ctx: Context) -> float:
    if kind == "channels":
        return sum(group.width for group in groups)
    totals = count(model, ctx.input_shape)
    return totals.macs if kind == "macs" else totals.params


def couple(model: nn.Module, how: Prune, ctx: Context) -> Coupling:
    """The groups of ``model`` (in eval mode) that ``how`` allows to prune; raises StageError where there is none."""
    unknown = sorted(set(how.keep) - {name for name, _ in model.named_modules()})
    if unknown:
        raise StageError(f"keep names layers that the network does not have: {', '.join(unknown)}")
    coupling = trace(model, _noise(model, ctx, 1), classifier=ctx.spec.classifier, keep=how.keep)
    if not coupling.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in coupling.left_alone.items())
        raise StageError(f"no layer of this network can be pruned: {reasons}")
    return coupling


def _noise(model: nn.Module, ctx: Context, images: int) -> Tensor:
    """Random images [N, C, H, W] where the model lies, the same ones every time."""
    weight = next(model.parameters())
    drawn = torch.randn(images, *ctx.input_shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(device=weight.device, dtype=weight.dtype)


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-6)
