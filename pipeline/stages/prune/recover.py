"""A pruned network learns, in all its layers at once, to answer in the channels that are left what it answered before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from edgewise.network.norm_pairs import find_norms
from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import run_until_seen
from edgewise.stages.training.blockwise import distill_if_better
from edgewise.store.entries import key_of

_JUDGED = 512


def recover_by_distillation(
    pruned: nn.Module, whole: nn.Module, left: Mapping[str, Sequence[int]], ctx: Context, *, steps: int, lr: float,
    batch: int,
) -> tuple[float, float]:  # fmt: skip
    """Train ``pruned`` in place; both networks in eval mode on ``ctx.device``.

    ``left`` tells which of a layer's outputs remain. Each layer is compared behind its batch norm. Returns the loss on
    calibration images before and after; where it has not fallen, all is undone.
    """
    images = draw_batches(ctx.data.calib, _JUDGED, ctx, whole)
    norms = find_norms(whole, images[0][:2]).pairs
    ran = run_until_seen(whole, left, images[0][:2])
    points = {norms.get(name, name): (_axis(whole.get_submodule(name)), left[name]) for name in ran}
    return distill_if_better(pruned, whole, points, _own_folder(ctx, left), images, steps=steps, lr=lr, batch=batch)


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _own_folder(ctx: Context, left: Mapping[str, Sequence[int]]) -> Context:
    """The context with a folder of this cut's own: a budget of time may cut otherwise when a killed step is repeated."""
    folder = ctx.scratch / f"recovery-{key_of(**{name: [*rows] for name, rows in left.items()})[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(ctx, scratch=folder)
