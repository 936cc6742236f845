"""A recipe for a network of one's own, and the few changes that people make to any recipe from the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgewise import recipes
from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.stage import Stage
from edgewise.stages.finetune import Finetune
from edgewise.stages.prune import Prune
from edgewise.stages.train import Train
from edgewise.stages.training.settings import Training

_BUDGETS = ("channels", "macs", "params", "bytes", "latency", "milliseconds")


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What to change; None: nothing."""

    prune: float | None = None
    """Share of the multiply-accumulates to keep."""
    epochs: int | None = None
    """Of each fine-tuning; in a recipe without one, of training with quantization."""
    lr: float | None = None
    """Of the same."""
    max_drop: float | None = None
    """Top-1 that a step or a file may lose, as a fraction."""

    def __post_init__(self) -> None:
        if self.prune is not None and not 0 < self.prune < 1:
            raise RequestError(
                f"--prune takes the share of the multiply-accumulates to keep, above 0 and below 1, found {self.prune:g}"
            )
        if self.epochs is not None and self.epochs < 1:
            raise RequestError(f"--epochs must be 1 or more, found {self.epochs}")


def own_recipe(model: str | None, data: str | None, weights: str | None, shortcuts: Shortcuts) -> Recipe:
    """The ready recipe for a network of one's own: ``quantize_only`` on this model and data.

    Raises RequestError for what is missing: without weights a baseline must be trained, which --epochs asks for.
    """
    missing = [option for option, value in (("--model", model), ("--data", data)) if value is None]
    if missing or model is None or data is None:
        raise RequestError(
            f"without a recipe a run wants --model and --data, found no {' and no '.join(missing)}: for example "
            "edgewise run --model net.py:build --weights w.pt --data imagefolder:DIR; 'edgewise list recipes' names ready ones"
        )
    if weights is None and shortcuts.epochs is None:
        raise RequestError(
            "there are no weights: give the trained ones with --weights F, or have a baseline trained with --epochs N"
        )
    recipe = dataclasses.replace(recipes.quantize_only(), name=name_of(model), model=model, data=data, weights=weights)
    if weights is None:
        training = Training(epochs=shortcuts.epochs or 1, lr=shortcuts.lr or 0.1, warmup=1)
        recipe = dataclasses.replace(recipe, baseline=Train(training=training))
    return recipe


def name_of(model: str) -> str:
    """What to call a run of a model: its file's name or its own, in letters, digits and underscores."""
    path = model.rpartition(":")[0] if ".py:" in model else model
    return re.sub(r"\W+", "_", Path(path).stem).strip("_") or "mine"


def shorten_recipe(recipe: Recipe, shortcuts: Shortcuts) -> Recipe:
    """The recipe with the changes. Raises RequestError where it has nothing that a change applies to."""
    if shortcuts.max_drop is not None:
        recipe = dataclasses.replace(recipe, limits=dataclasses.replace(recipe.limits, max_drop=shortcuts.max_drop))
    if shortcuts.prune is not None:
        recipe = dataclasses.replace(recipe, stages=_prune_stages(recipe.stages, shortcuts.prune))
    if shortcuts.epochs is not None or shortcuts.lr is not None:
        recipe = _retrain_stages(recipe, shortcuts)
    return recipe


def _prune_stages(stages: tuple[Stage, ...], kept: float) -> tuple[Stage, ...]:
    """The stages pruning to ``kept`` of the multiply-accumulates: their own ``Prune`` on that budget, else one in front."""
    if any(isinstance(stage, Prune) for stage in stages):
        return tuple(_on_macs(stage, kept) if isinstance(stage, Prune) else stage for stage in stages)
    return (Prune(macs=kept), Finetune(training=Training(epochs=10, lr=0.01, distill=0.9)), *stages)


def _on_macs(stage: Prune, kept: float) -> Prune:
    others = {item.name: None for item in dataclasses.fields(stage) if item.name in _BUDGETS}
    return dataclasses.replace(stage, **others | {"macs": kept})  # type: ignore[arg-type]


def _retrain_stages(recipe: Recipe, shortcuts: Shortcuts) -> Recipe:
    settings = {key: value for key in ("epochs", "lr") if (value := getattr(shortcuts, key)) is not None}
    change: Callable[[Training], Training] = lambda training: dataclasses.replace(training, **settings)  # noqa: E731
    is_tuning = [isinstance(stage, Finetune) for stage in recipe.stages]
    stages = tuple(
        dataclasses.replace(stage, training=change(stage.training)) if isinstance(stage, Finetune) else stage
        for stage in recipe.stages
    )
    quantize = recipe.quantize
    if quantize is not None and quantize.training is not None and not any(is_tuning):
        quantize = dataclasses.replace(quantize, training=change(quantize.training))
    if stages == recipe.stages and quantize == recipe.quantize and recipe.weights is not None and not any(is_tuning):
        raise RequestError(
            f"recipe {recipe.name!r} trains nothing after its baseline, so that --epochs and --lr change nothing"
        )
    return dataclasses.replace(recipe, stages=stages, quantize=quantize)
