"""Edgewise: makes a vision network small and fast enough for a device, and proves that the file still works.

The names that a recipe is written with are handed on here, each loaded when it is first asked for::

    from edgewise import Finetune, Fold, Limits, Prune, Recipe, Training

Nothing of the project itself imports them from here: what a result is kept under follows imports, and this face would
put every stage into every key.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgewise.public_names import HOMES

if TYPE_CHECKING:
    from edgewise.images.preprocess import Preprocess
    from edgewise.recipe import Recipe
    from edgewise.run.deployed import deploy
    from edgewise.stage import Traits
    from edgewise.stages.finetune import Finetune
    from edgewise.stages.fold import Fold
    from edgewise.stages.prune import Prune
    from edgewise.stages.prune.sparsify import Sparsify
    from edgewise.stages.quantize import Quantize
    from edgewise.stages.remove_blocks import RemoveBlocks
    from edgewise.stages.separate import Separate
    from edgewise.stages.separate.average_pool import AveragePool
    from edgewise.stages.separate.pooled_head import PooledHead
    from edgewise.stages.train import Train
    from edgewise.stages.training.augment import Augment
    from edgewise.stages.training.settings import Training
    from edgewise.targets import Packaging, Sizes
    from edgewise.verify.gates import Limits

__all__ = [
    "Augment", "AveragePool", "Finetune", "Fold", "Limits", "Packaging", "PooledHead", "Preprocess", "Prune", "Quantize",
    "Recipe", "RemoveBlocks", "Separate", "Sizes", "Sparsify", "Train", "Training", "Traits", "deploy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
