"""From a request's words to everything a run needs, before anything expensive happens.

Every name, file, backend and field is looked up here; what is wrong with the request is found here or not at all.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calib_data
import targets
from calib_data import Data
from models import Spec
from pipeline import architecture
from pipeline.architecture import Base
from pipeline.catalogue import recipe_names
from pipeline.errors import RequestError
from pipeline.recipe import Recipe, stage_name
from targets import Target


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with every name resolved."""

    recipe: Recipe
    spec: Spec
    base: Base
    data: Data
    targets: tuple[Target, ...]
    runtime: Target
    weights: Path | None
    out: Path
    store: Path


def find_recipe(reference: str) -> Recipe:
    """A ready recipe by name, or the user's ``path/to/recipe.py:function``. Raises RequestError."""
    if ".py:" in reference:
        function = architecture.load_function(reference)
    elif reference in recipe_names():
        from pipeline import recipes

        function = getattr(recipes, reference)
    else:
        near = difflib.get_close_matches(reference, recipe_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        choices = ", ".join(recipe_names())
        raise RequestError(f"unknown recipe {reference!r}.{hint} Choices: {choices}; or path/to/recipe.py:function")
    recipe = function()
    if not isinstance(recipe, Recipe):
        raise RequestError(f"{reference} returned {type(recipe).__name__}; wanted a pipeline.recipe.Recipe")
    return recipe


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields of ``changes`` that are not None."""
    return dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def resolve(recipe: Recipe, out: Path | None = None) -> Job:
    """Look up and check everything the recipe names.

    Raises RequestError or a leaf's ValueError for what is wrong, MissingBackend where a package is missing.
    """
    chosen = tuple(targets.get(name) for name in recipe.targets)
    runtime = targets.get(recipe.runtime)
    if runtime.load is None:
        raise RequestError(
            f"the declared runtime {runtime.name!r} does not exist on this machine; choose another, as --runtime onnx"
        )
    _check_device(recipe.device)
    spec = architecture.spec_of(recipe.model)
    _check_possible(recipe, spec)
    data = calib_data.load(recipe.data, recipe.seed)
    base = Base(recipe.model, len(data.classes), data.shape[0])
    network = architecture.build(base)
    spec = dataclasses.replace(spec, classifier=architecture.classifier_of(network, spec))
    _check_forward(network, spec, data)
    weights = None if recipe.weights is None else Path(recipe.weights)
    if weights is not None:
        architecture.load_weights(network, weights)
    place = Path("runs") / recipe.name if out is None else out
    _check_writable(place)
    store = Path(os.environ.get("EDGEWISE_STORE", "runs/store"))
    return Job(
        recipe=recipe, spec=spec, base=base, data=data, targets=chosen, runtime=runtime, weights=weights, out=place,
        store=store,
    )  # fmt: skip


def _check_possible(recipe: Recipe, spec: Spec) -> None:
    """The architecture says beside its own code what it cannot go through; better to hear it now than after training."""
    stages = (*recipe.stages, *([] if recipe.quantize is None else [recipe.quantize]))
    for name in (*map(stage_name, stages), *recipe.targets):
        if name in spec.cannot:
            raise RequestError(f"{spec.name} cannot go through {name}: {spec.cannot[name]}; leave it out of the recipe")


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise RequestError(f"unknown device {device!r}; choices: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device 'cuda' was asked for, but this torch finds no GPU; use --device cpu")


def _check_forward(network: Any, spec: Spec, data: Data) -> None:
    """One image goes through, and as many logits come out as there are classes."""
    import torch

    from pipeline.images import normalise

    image = normalise(data.test.batch(torch.tensor([0])), spec)
    try:
        with torch.inference_mode():
            found = network.eval()(image)
    except Exception as error:
        wanted, shape = "×".join(map(str, spec.input_shape)), "×".join(map(str, data.shape))
        raise RequestError(
            f"{spec.name} cannot take the images of {data.name} ({shape}; it was published for {wanted}): "
            f"{str(error).splitlines()[0]}. Choose another --model or --data"
        ) from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (1, len(data.classes)):
        answer = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise RequestError(
            f"{spec.name} answers {answer} for one image; wanted logits (1, {len(data.classes)}), one for each class of "
            f"{data.name}"
        )


def _check_writable(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"cannot write into {place}: {error.strerror}; choose another folder with --out") from error
