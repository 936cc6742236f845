"""Where each name that a recipe is written with is defined."""

from __future__ import annotations

HOMES: dict[str, str] = {
    "Augment": "stages.training.augment",
    "AveragePool": "stages.separate.average_pool",
    "Finetune": "stages.finetune",
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
    "deploy": "run.deployed",
}
"""Public name -> the module that defines it."""
