"""Whether a recipe's parts go together, with its targets and its network: all that can be known before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgewise.errors import RequestError, name_nearest
from edgewise.recipe import Recipe
from edgewise.stage import Context, Stage, stage_name
from edgewise.stages.training.nodes import shared_training
from edgewise.targets import Precision, Target, TargetError, refuse_packaging

if TYPE_CHECKING:
    from torch import nn

    from edgewise.calib_data import Data
    from edgewise.models import Spec
    from edgewise.stages.training.settings import Training


def check(recipe: Recipe, wanted: Sequence[Target], network: nn.Module, spec: Spec, data: Data) -> None:
    """Raise RequestError for the first thing that cannot come to a good end; ``network`` as it was built, untrained."""
    check_data(data)
    for target in wanted:
        deliverables(recipe, target)
    _check_candidates(recipe, wanted)
    _check_training(recipe)
    _check_layers(recipe, network)
    if recipe.quantize is not None:
        _check_folded(recipe, network, spec, data)


def check_data(data: Data) -> None:
    """Raise RequestError for a data set without images to calibrate or to judge on; what trains asks for its own."""
    parts = {"calib": data.calib, "test": data.test}
    empty = [name for name, part in parts.items() if not len(part)]
    if empty:
        purposes = " and ".join(_PURPOSE[name] for name in empty)
        raise RequestError(f"{data.name} has no images to {purposes}; name another data set with --data")


_PURPOSE = {"calib": "calibrate on", "test": "test on"}


def deliverables(recipe: Recipe, target: Target) -> tuple[str, ...]:
    """What a target writes a file in for this recipe, in the recipe's words. Raises RequestError where that is nothing."""
    precisions = tuple(name for name in _kinds_to_write(recipe) if _can_write(target, name))
    for name in precisions:
        _refuse_packaging(recipe, target, name)
    if precisions:
        return precisions
    can = (["int8"] if target.grids else []) + ([] if target.integers_only else ["float", *target.precisions])
    raise RequestError(
        f"target {target.name!r} can write no file of this recipe: wanted {' or '.join(_kinds_to_write(recipe))}, it writes "
        f"{', '.join(can)}"
        + ("; leave --float out" if target.integers_only else "; change candidates, or leave it out")
    )


def _kinds_to_write(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of files that a recipe asks for."""
    if recipe.candidates:
        return recipe.candidates
    return ("int8",) if recipe.quantize is not None else (recipe.packaging.precision or "float",)


def _can_write(target: Target, kind: str) -> bool:
    if kind == "int8":
        return bool(target.grids)
    return not target.integers_only and (kind == "float" or kind in target.precisions)


def _refuse_packaging(recipe: Recipe, target: Target, kind: str) -> None:
    """Raise RequestError where the recipe's packaging asks of a target what none of its files has."""
    weight_kind = recipe.packaging.precision
    if weight_kind is not None and weight_kind != "int8" and not _can_write(target, weight_kind):
        raise RequestError(f"target {target.name!r} writes no {weight_kind} file, which Packaging.precision asks for")
    precision = weight_kind if kind == "float" else cast(Precision, kind)
    try:
        refuse_packaging(target, recipe.packaging, precision)
    except TargetError as error:
        raise RequestError(str(error)) from error


def _check_candidates(recipe: Recipe, wanted: Sequence[Target]) -> None:
    """Each kind of file asked for is one that some target writes."""
    for kind in _kinds_to_write(recipe):
        if not any(_can_write(target, kind) for target in wanted):
            names = ", ".join(target.name for target in wanted)
            raise RequestError(
                f"no target of the recipe ({names}) can write a file in {kind!r}; leave it out of candidates"
            )
    precision = recipe.packaging.precision
    if recipe.candidates and precision is not None:
        raise RequestError(
            f"Packaging.precision {precision!r} and candidates both say what files compute in; leave one out"
        )
    if precision is not None and (precision == "int8") != (recipe.quantize is not None):
        repair = "give it one" if precision == "int8" else "leave one out"
        condition = "no quantize step" if precision == "int8" else "a quantize step, whose files are int8"
        raise RequestError(f"Packaging.precision asks for {precision} files and the recipe has {condition}; {repair}")


def trainings_of(recipe: Recipe) -> Iterator[Training]:
    """The settings of every training that the recipe may come to."""
    for step in (recipe.baseline, *recipe.stages, recipe.quantize):
        how = getattr(step, "training", None)
        if how is not None and (step is not recipe.baseline or recipe.weights is None):
            yield how


def _check_training(recipe: Recipe) -> None:
    """Every training of the recipe can run where it is to run."""
    shared_training(trainings_of(recipe))
    stages = {f"stage {n + 1}, {stage_name(stage)}": stage for n, stage in enumerate(recipe.stages)}
    for where, stage in (stages | {"baseline": recipe.baseline, "quantize": recipe.quantize}).items():
        how = getattr(stage, "training", None)
        if how is None:
            continue
        if where == "baseline" and how.distill and recipe.weights is None:
            raise RequestError(
                "Training.distill needs a trained baseline, and there is none while the baseline is trained"
            )
        if how.precision == "16-mixed" and recipe.device == "cpu":
            raise RequestError(
                f"{where}: precision '16-mixed' trains on a GPU; use 'bf16-mixed', '32-true' or 'auto' on a CPU"
            )
        if recipe.device == "cuda" and how.devices > _count_gpus():
            raise RequestError(f"{where}: Training.devices is {how.devices}, and this machine has {_count_gpus()} GPUs")


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _check_layers(recipe: Recipe, network: nn.Module) -> None:
    """Every layer that a stage names is one of the network's; what an earlier stage puts in a layer's place is below it."""
    names = [name for name, _ in network.named_modules() if name]
    leaves = {name for name, module in network.named_modules() if not any(module.children())}
    for stage in recipe.stages:
        for field, name in _named_layers(stage):
            parents = {name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]}
            if name not in names and not parents & leaves:
                raise RequestError(
                    f"{type(stage).__name__}.{field} names {name!r}, which is no layer of {recipe.model}."
                    f"{name_nearest(name, names)} It has: {', '.join(sorted(leaves)[:12])}{' …' if len(leaves) > 12 else ''}"
                )


def _named_layers(stage: Stage) -> Iterator[tuple[str, str]]:
    for field in ("keep", "layers"):
        for name in getattr(stage, field, None) or ():
            yield field, name


def _check_folded(recipe: Recipe, network: nn.Module, spec: Spec, data: Data) -> None:
    """No batch norm is left when the network is quantized: its stages that fold are run on it as it was built."""
    from torch import nn

    folding = [stage for stage in recipe.stages if stage_name(stage) == "fold"]
    with tempfile.TemporaryDirectory() as scratch:
        for stage in folding:
            network = stage(network.eval(), Context(spec=spec, data=data, scratch=Path(scratch)))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms_left = [name for name, module in network.named_modules() if isinstance(module, norms)]
    if norms_left and folding:
        raise RequestError(
            f"quantize takes no batch norm, and {', '.join(norms_left[:4])} of {recipe.model} cannot be folded"
        )
    if norms_left:
        raise RequestError(
            f"quantize takes no batch norm, and {recipe.model} has {len(norms_left)} ({norms_left[0]}, …); put Fold() after the last "
            "stage that changes its layers"
        )
