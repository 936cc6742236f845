"""From a request's words to everything a run needs, before anything expensive happens.

Every name, file, backend and field is looked up here; what is wrong with the request is found here or not at all.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import calib_data
from edgewise import targets as edgewise_targets
from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.images import resized
from edgewise.images.preprocess import blank_image
from edgewise.images.sizes import with_main_size_first
from edgewise.models import Spec
from edgewise.network import architecture
from edgewise.network import weights as network_weights
from edgewise.network.architecture import Base
from edgewise.recipe import Recipe
from edgewise.run import feasible
from edgewise.run.one_graph import check_sizes
from edgewise.stage import stage_name, traits_of
from edgewise.store.entries import store_folder
from edgewise.targets import Target

if TYPE_CHECKING:
    from torch import nn


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


def resolve(recipe: Recipe, out: Path | None = None) -> Job:
    """Look up and check everything the recipe names.

    Raises RequestError or a leaf's ValueError for what is wrong, MissingBackend where a package is missing.
    """
    chosen = tuple(edgewise_targets.get(name) for name in recipe.targets)
    runtime = edgewise_targets.get(recipe.runtime)
    if runtime.load is None:
        raise RequestError(
            f"the declared runtime {runtime.name!r} does not exist on this machine; choose another, as --runtime onnx"
        )
    _check_device(recipe.device)
    spec = architecture.spec_of(recipe.model)
    _check_possible(recipe, spec)
    data = calib_data.load(recipe.data, recipe.seed)
    feasible.check_data(data)
    recipe, data = _sized(_labelled(recipe, data), data)
    base = Base(recipe.model, len(data.classes), data.shape[0])
    network = architecture.build(base)
    spec = dataclasses.replace(spec, classifier=architecture.classifier_of(network, spec))
    _check_forward(network, spec, data)
    _check_packaging(network, spec, data, recipe, (*chosen, runtime))
    feasible.check(recipe, chosen, network, spec, data)
    weights = None if recipe.weights is None else Path(recipe.weights)
    if weights is not None:
        network_weights.load_weights(network, weights)
    place = Path("runs") / recipe.name if out is None else out
    _check_writable(place)
    store = store_folder()
    _check_store(store)
    return Job(
        recipe=recipe, spec=spec, base=base, data=data, targets=chosen, runtime=runtime, weights=weights, out=place,
        store=store,
    )  # fmt: skip


def _check_possible(recipe: Recipe, spec: Spec) -> None:
    """The architecture says beside its own code what it cannot go through; better to hear it now than after training."""
    stages = (*recipe.stages, *([] if recipe.quantize is None else [recipe.quantize]))
    for stage in stages:
        traits_of(stage)
    for name in (*map(stage_name, stages), *recipe.targets):
        if name in spec.cannot:
            raise RequestError(f"{spec.name} cannot go through {name}: {spec.cannot[name]}; leave it out of the recipe")


def _labelled(recipe: Recipe, data: Data) -> Recipe:
    """The recipe with the data's class names as labels, where it gives none."""
    labels = recipe.packaging.labels or data.classes
    if len(labels) != len(data.classes):
        raise RequestError(f"the recipe gives {len(labels)} labels, {data.name} has {len(data.classes)} classes")
    return dataclasses.replace(recipe, packaging=dataclasses.replace(recipe.packaging, labels=tuple(labels)))


def _sized(recipe: Recipe, data: Data) -> tuple[Recipe, Data]:
    """The recipe with its main image size first, and the data resized to it."""
    packaging = recipe.packaging
    if packaging.sizes is None:
        return recipe, data
    sizes = with_main_size_first(packaging.sizes, data.shape[1:])
    changed = dataclasses.replace(recipe, packaging=dataclasses.replace(packaging, sizes=sizes))
    return changed, resized.resize_data(data, sizes.choices[0])


def _check_packaging(network: nn.Module, spec: Spec, data: Data, recipe: Recipe, wanted: Sequence[Target]) -> None:
    """Every target can write what is asked for, and the network accepts every size."""
    if recipe.preprocess.fed == "bytes":
        for target in wanted:
            if not target.takes_bytes:
                raise RequestError(
                    f"target {target.name!r} writes no file that is fed bytes; leave --feed bytes out for it"
                )
    if recipe.packaging.sizes is not None:
        check_sizes(network, spec.name, blank_image(data.shape, "normalised"), recipe.packaging.sizes, wanted)


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise RequestError(f"unknown device {device!r}; choices: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device 'cuda' was asked for, but this torch finds no GPU; use --device cpu")


def _check_forward(network: Any, spec: Spec, data: Data) -> None:
    """One image goes through, and as many logits come out as there are classes."""
    import torch

    from edgewise.images.normalise import normalise

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


def _check_store(place: Path) -> None:
    """Raise RequestError where results cannot be kept; nothing is made there yet."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = "is read-only" if there.is_dir() else "is no folder"
        raise RequestError(
            f"results cannot be kept in {place}: {there} {found}; name another folder with EDGEWISE_STORE"
        )
