"""Finding what can be cut in a network, and cutting it with a proof that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.stages.prune.coupling import (
    Coupling,
    Group,
    Removed,
    averages,
    cut_channels,
    silence_channels,
    trace_groups,
)

if TYPE_CHECKING:
    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings


_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between the cut network and the one that ignores the channels."""


def cut_and_check(model: nn.Module, groups: Sequence[Group], removed: Removed, ctx: Context) -> None:
    """Cut ``model`` in place, and make sure that it computes what it did with the removed channels ignored.

    Raises StageError where it does not, or does not run: the network mixes channels in a way that was not understood.
    """
    before = copy.deepcopy(model)
    cut_channels(model, groups, removed)
    problem = _problem(before, model, groups, removed, ctx)
    if problem is None:
        return
    culprits = []
    for group, blocks in zip(groups, removed, strict=True):
        alone = copy.deepcopy(before)
        cut_channels(alone, [group], [blocks])
        if _problem(before, alone, [group], [blocks], ctx) is not None:
            culprits.append(group.name)
    where = f"; it arises at {', '.join(culprits)}: name them in keep" if culprits else ""
    raise StageError(f"the network mixes channels in a way that pruning does not see: {problem}{where}")


def _problem(
    before: nn.Module, after: nn.Module, groups: Sequence[Group], removed: Removed, ctx: Context
) -> str | None:
    """What is wrong with ``after``, which was cut from ``before``; None if nothing."""
    ignoring = copy.deepcopy(before)
    silence_channels(ignoring, groups, removed)
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


def find_groups(model: nn.Module, how: Settings, ctx: Context) -> Coupling:
    """The groups of ``model`` (in eval mode) that ``how`` allows to prune; raises StageError where there is none."""
    return trace_for(model, how.keep, ctx, shortcuts=how.shortcuts)


def trace_for(model: nn.Module, keep: Sequence[str], ctx: Context, *, shortcuts: bool = True) -> Coupling:
    """The groups of ``model`` (in eval mode), but for the outputs of the layers in ``keep`` and, without ``shortcuts``, of
    those that are added to each other.

    Raises StageError for a layer that does not exist, and where no group is left.
    """
    unknown = sorted(set(keep) - {name for name, _ in model.named_modules()})
    if unknown:
        raise StageError(f"keep names layers that the network does not have: {', '.join(unknown)}")
    coupling = trace_groups(
        model, _noise(model, ctx, 1), classifier=ctx.spec.classifier, keep=keep, shortcuts=shortcuts
    )
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
