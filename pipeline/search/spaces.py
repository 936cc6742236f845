"""Ready search spaces, one for each kind of ready recipe: each asks a trial for values and returns a recipe."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from edgewise import recipes
from edgewise.recipe import Recipe
from edgewise.search.first_values import begin_with
from edgewise.stage import Stage
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.prune.settings import Scope
from edgewise.stages.quantize import Quantize
from edgewise.stages.quantize.calibrate import Ranges
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.separate import Separate
from edgewise.stages.training.settings import Training
from edgewise.targets import Packaging, Sizes

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@begin_with(epochs=20, scope="global", channels=0.7, substitute=True, max_error=0.6, precision="int8")
@begin_with(epochs=20, scope="global", channels=0.7, substitute=True, max_error=0.6, precision="float")
def demo(trial: BaseTrial) -> Recipe:
    """The digits: how much is pruned, by which rule, whether convolutions are substituted, epochs, precision of the file."""
    base = recipes.demo()
    recover = Finetune(training=_recovering(base, trial.suggest_int("epochs", 10, 20, step=5)))
    scope: Scope = trial.suggest_categorical("scope", ["global", "layer"])  # type: ignore[assignment]
    kept = trial.suggest_float("channels", 0.3, 0.9, step=0.1)
    stages: list[Stage] = [Prune(channels=kept, scope=scope), recover]
    if trial.suggest_categorical("substitute", [True, False]):
        most = trial.suggest_float("max_error", 0.4, 0.8, step=0.2)
        stages += [Separate(max_error=most, measure_time=False), recover]
    return _in_precision(trial, dataclasses.replace(base, stages=(*stages, Fold()), targets=("onnx",)))


def _recovering(base: Recipe, epochs: int) -> Training:
    """The recipe's own fine-tuning for so many epochs."""
    tuning = next(stage for stage in base.stages if isinstance(stage, Finetune))
    return dataclasses.replace(tuning.training, epochs=epochs)


def _in_precision(trial: BaseTrial, recipe: Recipe) -> Recipe:
    """The recipe writing one kind of file."""
    if trial.suggest_categorical("precision", ["float", "int8"]) == "int8":
        return dataclasses.replace(recipe, candidates=("int8",))
    return dataclasses.replace(recipe, candidates=("float",), quantize=None)


_AS_IT_IS = {"macs": 1.0, "precision": "int8", "ranges": "percentile", "float_layers": 0}
"""Quantized and nothing else."""


@begin_with(**_AS_IT_IS)
def quantize_only(trial: BaseTrial) -> Recipe:
    """A trained network without training: pruned and fitted anew, quantized, its costliest layers left in float."""
    return _post_training(trial, recipes.quantize_only())


@begin_with(**_AS_IT_IS)
def cifar_resnet20(trial: BaseTrial) -> Recipe:
    """ResNet-20 on CIFAR-10 without training: pruned and fitted anew, quantized, its costliest layers left in float."""
    return _post_training(trial, dataclasses.replace(recipes.cifar_resnet20_int8(), name="cifar_resnet20_search"))


@begin_with(**_AS_IT_IS, blocks=0)
def cifar_resnet56(trial: BaseTrial) -> Recipe:
    """ResNet-56 on CIFAR-10 without training: blocks removed, pruned and fitted anew, quantized."""
    base = dataclasses.replace(recipes.cifar_resnet56_int8(), name="cifar_resnet56_search")
    count = trial.suggest_int("blocks", 0, 6)
    removed = (RemoveBlocks(count=count, reconstruct=512),) if count else ()
    recipe = _post_training(trial, base)
    return dataclasses.replace(recipe, stages=(*removed, *recipe.stages))


def _post_training(trial: BaseTrial, base: Recipe) -> Recipe:
    kept = trial.suggest_float("macs", 0.5, 1.0, step=0.05)
    prune: tuple[Stage, ...] = ()
    if kept < 1:
        images = trial.suggest_categorical("reconstruct", [256, 512])
        prune = (Prune(macs=kept, reconstruct=images, shortcuts=trial.suggest_categorical("shortcuts", [True, False])),)
    recipe = dataclasses.replace(base, stages=(*prune, Fold()), targets=("onnx",), on_failure="stop")
    if trial.suggest_categorical("precision", ["float", "int8"]) == "float":
        return dataclasses.replace(recipe, candidates=("float",), quantize=None)
    ranges: Ranges = trial.suggest_categorical("ranges", ["percentile", "mse", "minmax"])  # type: ignore[assignment]
    layers = trial.suggest_int("float_layers", 0, 2)
    quantize = Quantize(
        training=None, ranges=ranges, max_float_layers=layers, sensitivity=128 if layers else 0, budget=0.0
    )
    return dataclasses.replace(recipe, candidates=("int8",), quantize=quantize)


def cifar_resnet20_trained(trial: BaseTrial) -> Recipe:
    """ResNet-20 on CIFAR-10 with fine-tuning: budget, scope, substitution, epochs, precision; hours."""
    base = recipes.cifar_resnet20()
    training = Training(epochs=trial.suggest_int("epochs", 4, 40, log=True), lr=0.01, distill=0.9)
    scope: Scope = trial.suggest_categorical("scope", ["global", "sensitivity"])  # type: ignore[assignment]
    stages: list[Stage] = [Prune(macs=trial.suggest_float("macs", 0.3, 0.9, step=0.1), scope=scope)]
    if trial.suggest_categorical("substitute", [True, False]):
        stages.append(Separate(max_drop=trial.suggest_float("separate_drop", 0.05, 0.2, step=0.05), recover_steps=500))
    named = dataclasses.replace(base, name="cifar_resnet20_trained", targets=("onnx",))
    return _in_precision(trial, dataclasses.replace(named, stages=(*stages, Finetune(training=training), Fold())))


def cifar_resnet56_compound(trial: BaseTrial) -> Recipe:
    """ResNet-56 on CIFAR-10 made smaller in depth, width and resolution together, then fine-tuned; hours."""
    scale = scale_together(trial.suggest_float("smaller", 0.2, 1.5, step=0.1))
    blocks = RemoveBlocks(count=max(1, round(_REMOVABLE * (1 - scale.depth))), reconstruct=512)
    side = max(8, 4 * round(_SIDE * scale.side / 4))  # the network halves its images twice
    training = Training(epochs=trial.suggest_int("epochs", 10, 60, log=True), lr=0.02, distill=0.9)
    return dataclasses.replace(
        recipes.cifar_resnet56(),
        name="cifar_resnet56_compound",
        stages=(blocks, Prune(channels=scale.width), Finetune(training=training), Fold()),
        targets=("onnx",),
        packaging=Packaging(sizes=Sizes(choices=((side, side),))),
    )


_REMOVABLE, _SIDE = 24, 32
"""Of ResNet-56 on CIFAR-10: blocks without a change of shape, and pixels of a side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Shares of a network's depth, width and image side that are kept."""

    depth: float
    width: float
    side: float


def scale_together(smaller: float) -> Scale:
    """EfficientNet's rule (Tan and Le 2019, equation 3) turned round: each unit of ``smaller`` halves the multiply-accumulates,
    which grow as depth × width² × side², with the shares that the paper found, 1.2, 1.1 and 1.15.
    """
    if not 0 <= smaller < math.inf:
        raise ValueError(f"wanted how much smaller as a number from 0, found {smaller:g}")
    # The paper's three come to 1.92 for one unit; the exponent makes it 2.
    unit = math.log(2) / math.log(1.2 * 1.1**2 * 1.15**2) * smaller
    return Scale(depth=1.2**-unit, width=1.1**-unit, side=1.15**-unit)
