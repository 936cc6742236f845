"""Budgets that no plan can meet, whatever the weights: refused before any work."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.stage import Context
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.train import Train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgewise.calib_data import Data
    from edgewise.models import Spec


def check_budgets(recipe: Recipe, network: nn.Module, images: Tensor, spec: Spec, data: Data) -> None:
    """Raise RequestError where the first stage that makes ``network`` smaller cannot come to what it is asked for.

    ``images``: a few, normalised [N, C, H, W]. What later stages are given is only known once the earlier ones have run.
    """
    for stage in recipe.stages:
        if isinstance(stage, Prune):
            from edgewise.stages.prune.reach import check_reach

            with tempfile.TemporaryDirectory() as scratch:
                check_reach(network, stage, Context(spec=spec, data=data, scratch=Path(scratch), seed=recipe.seed))
        elif isinstance(stage, RemoveBlocks):
            _check_blocks(stage, network, images, spec)
        if not isinstance(stage, (Train, Finetune, Fold)):
            return


def _check_blocks(stage: RemoveBlocks, network: nn.Module, images: Tensor, spec: Spec) -> None:
    from edgewise.stages.remove_blocks.find import find_blocks

    names = [block.name for block in find_blocks(network, images)]
    if unknown := [name for name in (*stage.blocks, *stage.keep) if name not in names]:
        raise RequestError(
            f"RemoveBlocks names {', '.join(unknown)}, which cannot be removed from {spec.name}; choices: {', '.join(names) or 'none'}"
        )
    free = [name for name in names if name not in stage.keep]
    if not free:
        raise RequestError(
            f"RemoveBlocks: no block of {spec.name} can be removed{' but those in keep' if names else ''}"
        )
    if stage.count is not None and stage.count > len(free):
        raise RequestError(f"RemoveBlocks: wanted {stage.count} blocks to go; {len(free)} can: {', '.join(free)}")
