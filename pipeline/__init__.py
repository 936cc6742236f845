"""Edgewise: makes a vision network small and fast enough for a device, and proves that the file still works.

The names that a recipe is written with are handed on here, each loaded when it is first asked for::

    from edgewise import Finetune, Fold, Limits, Prune, Recipe, Training

Nothing of the project itself imports them from here: what a result is kept under follows imports, and this face would
put every stage into every key.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.images.preprocess import Preprocess
    from edgewise.recipe import Recipe
    from edgewise.stage import Traits
    from edgewise.stages.fold import Fold
    from edgewise.stages.prune import Prune
    from edgewise.stages.prune.sparsify import Sparsify
    from edgewise.stages.quantize import Quantize
    from edgewise.stages.remove_blocks import RemoveBlocks
    from edgewise.stages.separate import Separate
    from edgewise.stages.separate.average_pool import AveragePool
    from edgewise.stages.separate.pooled_head import PooledHead
    from edgewise.stages.train import Finetune, Train
    from edgewise.stages.training.augment import Augment
    from edgewise.stages.training.settings import Training
    from edgewise.targets import Packaging, Sizes
    from edgewise.verify.gates import Limits

__all__ = [
    "Augment", "AveragePool", "Finetune", "Fold", "Limits", "Packaging", "PooledHead", "Preprocess", "Prune", "Quantize",
    "Recipe", "RemoveBlocks", "Separate", "Sizes", "Sparsify", "Train", "Training", "Traits",
]  # fmt: skip

_HOMES = {
    "Augment": "stages.training.augment",
    "AveragePool": "stages.separate.average_pool",
    "Finetune": "stages.train",
    "Fold": "stages.fold",
    "Limits": "verify.gates",
    "Packaging": "targets",
    "PooledHead": "stages.separate.pooled_head",
    "Preprocess": "images.preprocess",
    "Prune": "stages.prune",
    "Quantize": "stages.quantize",
    "Recipe": "recipe",
    "RemoveBlocks": "stages.remove_blocks",
    "Separate": "stages.separate",
    "Sizes": "targets",
    "Sparsify": "stages.prune.sparsify",
    "Train": "stages.train",
    "Training": "stages.training.settings",
    "Traits": "stage",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
