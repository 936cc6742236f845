"""The images of a run: prepared as the network wants them, labelled as its outputs are numbered, enough for its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgewise import calib_data
from edgewise.calib_data import Data, DataError, Stated
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.recipe import Recipe
from edgewise.stage import Stage, stage_name, traits_of
from edgewise.stages.quantize import Quantize


def load_data(recipe: Recipe, spec: Spec) -> Data:
    """The recipe's images, at the size that the network states unless the request names one, and numbered as its outputs.

    Raises DataError or RequestError where names of classes do not fit, or the images do not do for the recipe's stages.
    """
    name, options = calib_data.with_options(recipe.data, wanted_options(spec))
    data = calib_data.load(name, recipe.seed)
    if options:
        prepared = {key: _from_spec(key, entry, options, spec) for key, entry in data.prepared.items()}
        data = dataclasses.replace(data, name=recipe.data, prepared=prepared)
    data = number_classes(data, recipe.packaging.labels or spec.classes, positional=bool(recipe.packaging.labels))
    check_enough(recipe, data)
    return data


def wanted_options(spec: Spec) -> dict[str, object]:
    """How the network states that images are prepared, as a reader's options; nothing where it does not say."""
    options: dict[str, object] = {}
    height, width = spec.input_shape[1:]
    if "input_shape" in spec.origins and height == width:
        options["size"] = height
    if spec.resize:
        options["resize"] = spec.resize
    if spec.interpolation:
        options["interpolation"] = spec.interpolation
    return options


def _from_spec(key: str, entry: Stated, added: frozenset[str], spec: Spec) -> Stated:
    setting = {"size": "input_shape"}.get(key, key)
    return Stated(entry.value, spec.origins.get(setting, entry.origin)) if key in added else entry


def number_classes(data: Data, classes: Sequence[str], *, positional: bool) -> Data:
    """``data`` under the numbers that its classes have in ``classes``, where there are such.

    ``positional``: names that fit none of them are taken in their order, where there are as many. Raises DataError.
    """
    if not classes:
        return data
    try:
        return calib_data.named_as(data, classes)
    except DataError:
        if positional and len(classes) == len(data.classes):
            return data
        raise


def check_enough(recipe: Recipe, data: Data) -> None:
    """Raise RequestError for a stage whose images are lacking: of every class where it trains, labelled where it decides."""
    own = () if recipe.weights is not None else (recipe.baseline,)
    stages: tuple[Stage, ...] = (*own, *recipe.stages, *([] if recipe.quantize is None else [recipe.quantize]))
    lacking = data.untrainable()
    for stage in stages:
        if _only_where_needed(stage):
            continue  # ``without_idle_training``
        traits = traits_of(stage)
        if traits.learns_from == "labels" and lacking:
            raise RequestError(
                f"{_stage_name(stage, recipe)} trains, and {data.name} {lacking}; training wants an image of every class, "
                f"judging and calibrating do not. {_ways_out(stage, recipe)}"
            )
        if traits.learns_from == "images" and not len(data.train):
            raise RequestError(
                f"{_stage_name(stage, recipe)} is fitted on training images, and {data.name} has none; add a train folder, "
                "labelled or not by every class, or leave the step out"
            )
        if traits.decides and not data.calib_is_labelled:
            raise RequestError(
                f"{_stage_name(stage, recipe)} decides by the accuracy on calibration images, and those of {data.name} have "
                "no labels; label them, or leave the step out"
            )


def _only_where_needed(stage: Stage) -> bool:
    return isinstance(stage, Quantize) and stage.when_needed and stage.training is not None


def without_idle_training(recipe: Recipe, data: Data) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without the training of a quantization that trains only where it is needed, where the images allow none;
    and the sentence that says so."""
    if recipe.quantize is None or not _only_where_needed(recipe.quantize):
        return recipe, ()
    lacking = data.untrainable() or ("" if data.calib_is_labelled else "has no labels of its calibration images")
    if not lacking:
        return recipe, ()
    sentence = f"{data.name} {lacking}: quantization calibrates, and trains nothing whatever that loses"
    return dataclasses.replace(recipe, quantize=dataclasses.replace(recipe.quantize, training=None)), (sentence,)


def _stage_name(stage: Stage, recipe: Recipe) -> str:
    return "the baseline" if stage is recipe.baseline else f"the step {stage_name(stage)}"


def _ways_out(stage: Stage, recipe: Recipe) -> str:
    if stage is recipe.baseline:
        return "Give its trained weights with --weights, or other --data"
    if stage is recipe.quantize:
        return "Quantize(training=None) calibrates alone, and when_needed=True trains only where it can; or give other --data"
    return "Leave the step out, or give other --data"


def describe_images(data: Data) -> Mapping[str, object]:
    """The images of a run for its report: how many, of how many classes, and what there is to say about them."""
    parts = {"train": data.train, "calib": data.calib, "test": data.test}
    return {
        "classes": len(data.classes),
        **{name: {"images": len(p), "classes": len(set(p.labels.tolist()) - {-1})} for name, p in parts.items()},
        "notes": [*data.notes, *data.cautions],
        "prepared": {name: f"{entry.value} ({entry.origin})" for name, entry in data.prepared.items()},
    }
