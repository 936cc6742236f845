"""From a request's words to everything a run needs, before anything expensive happens.

Every name, file, backend and field is looked up here; what is wrong with the request is found here or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import targets as edgewise_targets
from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.images import resized
from edgewise.images.overlap import find_overlap
from edgewise.images.preprocess import blank_image
from edgewise.images.sizes import sizes_to_try, with_main_size_first
from edgewise.models import Spec
from edgewise.network import architecture, start
from edgewise.network.architecture import Base
from edgewise.network.probabilities import Ending
from edgewise.network.start import Start
from edgewise.recipe import Recipe
from edgewise.run import feasible
from edgewise.run.data_for import load_data, without_idle_training
from edgewise.run.grids import share_grids
from edgewise.run.one_graph import check_sizes
from edgewise.run.place import check_owner
from edgewise.run.provenance import override_spec
from edgewise.run.reachable import check_budgets
from edgewise.stage import stage_name, traits_of
from edgewise.store.entries import Store, key_of, store_folder
from edgewise.store.sources import code_of
from edgewise.targets import Target
from edgewise.verify.gates import Limits

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    told: tuple[str, ...] = ()
    """What was done to the network before anything else, in sentences."""
    ending: Ending = "logits"
    """What the network answers."""
    by_batches: bool = True
    """False: it takes one image at a time."""
    whole: Data | None = None
    """The data set itself, where ``data`` is a view of it that is judged on other images than its test part."""
    searched: int = 0
    """Of how many trials of a search, judged on calibration images, this one is the choice; 0: nothing was searched."""

    @property
    def given(self) -> Data:
        """What stages are given, and what their results are kept under: the same however they are judged."""
        return self.data if self.whole is None else self.whole

    @property
    def sizes_to_stand(self) -> tuple[tuple[int, int], ...]:
        """The image sizes, beside the data's own, at which the network must answer as it came."""
        return sizes_to_try(self.recipe.packaging.sizes)

    def images(self, size: tuple[int, int] | None = None) -> Tensor:
        """A few test images, normalised [N, C, H, W], at the data's size or another."""
        return probe_images(self.data, self.spec, size)


def resolve_recipe(
    recipe: Recipe,
    out: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
    *,
    on_calibration: bool = False,
    searched: int = 0,
) -> Job:
    """Look up and check everything the recipe names; ``note`` is told what may take a while.

    ``on_calibration``: judge on the calibration images, and leave the test set alone (``view_of_calibration``); ``searched``:
    of how many trials of a search this is the choice. Raises RequestError or a leaf's ValueError for what is wrong, MissingBackend where a package is missing.
    """
    chosen_targets = tuple(edgewise_targets.get(name) for name in recipe.targets)
    runtime = edgewise_targets.get(recipe.runtime)
    if runtime.load is None:
        raise RequestError(
            f"the declared runtime {runtime.name!r} does not exist on this machine; choose another, as --runtime onnx"
        )
    _check_device(recipe.device)
    spec = architecture.spec_of(recipe.model)
    _check_possible(recipe, spec)
    spec = override_spec(spec, recipe)
    note(f"reading {recipe.data}")
    data = load_data(recipe, spec)
    recipe, untrained = without_idle_training(recipe, data)
    feasible.check_data(data)
    check_overlap(data, recipe.limits)
    recipe, data = _with_main_size(_add_labels(recipe, data), data)
    base = architecture.describe_base(recipe.model, len(data.classes), data.shape[0])
    weights = None if recipe.weights is None else Path(recipe.weights)
    note(f"trying {recipe.model}")
    start_state = _begin_network(base, spec, data, weights)
    _check_forward(start_state.model, spec, data)
    if architecture.is_foreign(recipe.model):
        _check_alone(start_state.model, spec, data, recipe)
    recipe, start_state = _move_softmax(*_add_fold(recipe, start_state))
    start_state = start.made_plain(
        start_state, [probe_images(data, spec, size) for size in (None, *sizes_to_try(recipe.packaging.sizes))]
    )
    spec = dataclasses.replace(spec, classifier=architecture.classifier_of(start_state.model, spec))
    _check_packaging(start_state.model, spec, data, recipe, (*chosen_targets, runtime))
    feasible.check(recipe, chosen_targets, start_state.model, spec, data)
    note("looking at what can be cut")
    check_budgets(recipe, start_state.model, probe_images(data, spec), spec, data)
    place = Path("runs") / recipe.name if out is None else out
    store = store_folder()
    _check_apart(place, store)
    _check_writable(place)
    whole, data = (data, view_of_calibration(data)) if on_calibration else (None, data)
    check_owner(place, recipe.describe(), data.digest)
    _check_store(store)
    by_batches = _rehearse_user_network(base, start_state.model, spec, data, recipe, chosen_targets, store)
    _try_targets(base, start_state.model, spec, data, recipe, (*chosen_targets, runtime), store, note)
    return Job(
        recipe=recipe, spec=spec, base=base, data=data, targets=chosen_targets, runtime=runtime, weights=weights, out=place,
        store=store, told=(*start_state.told, *untrained, *_view_words(whole, data)), ending=start_state.ending, by_batches=by_batches, whole=whole,
        searched=searched,
    )  # fmt: skip


def view_of_calibration(data: Data) -> Data:
    """``data`` judged on its calibration images: their part stands in the place of the test part, under a digest of its own.

    Raises RequestError where they have no labels, or there are none.
    """
    if not len(data.calib) or not data.calib_is_labelled:
        raise RequestError(
            f"a search judges its trials on calibration images, and those of {data.name} have no labels; label them, or "
            "run a recipe alone"
        )
    digest = key_of(view="calibration", data=data.digest)
    return dataclasses.replace(data, test=data.calib, digest=digest)


def _view_words(whole: Data | None, data: Data) -> tuple[str, ...]:
    if whole is None:
        return ()
    return (f"a trial of a search: judged on the {len(data.test):,} calibration images, never on the test set",)


def probe_images(data: Data, spec: Spec, size: tuple[int, int] | None = None) -> Tensor:
    """A few test images, normalised [N, C, H, W], at the data's size or another."""
    import torch

    from edgewise.images.normalise import normalise

    count = min(_PROBES, len(data.test))
    part = data.test if size is None else resized.sample_resized(data.test, size, count)
    return normalise(part.batch(torch.arange(count)), spec)


_PROBES = 4


def _rehearse_user_network(
    base: Base,
    network: nn.Module,
    spec: Spec,
    data: Data,
    recipe: Recipe,
    chosen_targets: Sequence[Target],
    store: Path,
) -> bool:
    """The dry run of a user's network, of which it is kept that it went well; ours went through all of it when they were
    entered."""
    if not architecture.is_foreign(recipe.model):
        return True
    from edgewise.run import dry_run

    grids = tuple(grid for grid, _ in share_grids(chosen_targets)) if recipe.quantize is not None else ()
    key = key_of(
        kind="rehearsal",
        **_network_facts(base, network, data, recipe),
        does=[dry_run.has_training(recipe), dry_run.has_changes(recipe), recipe.quantize is not None],
        grids=[grid.to_json() for grid in grids],
        code=code_of(dry_run),
        versions=edgewise_targets.versions(("torch", "torchao")),
    )

    def make(folder: Path, _: Path) -> None:
        batches = dry_run.rehearse_recipe(network, probe_images(data, spec), recipe, grids)
        (folder / _REHEARSED).write_text(json.dumps({"batches": batches}), encoding="utf-8")

    record = Store(store).keep(key, make).path / _REHEARSED
    return bool(json.loads(record.read_text(encoding="utf-8"))["batches"])


_REHEARSED = "rehearsal.json"


def _network_facts(base: Base, network: nn.Module, data: Data, recipe: Recipe) -> dict[str, Any]:
    """What tells one user's network from another in the key of what was tried with it: all but the weights' values."""
    return {
        "base": dataclasses.asdict(base),
        "source": architecture.code_digest(recipe.model),
        "tensors": sorted((name, list(tensor.shape)) for name, tensor in network.state_dict().items()),
        "shape": data.shape,
    }


def _try_targets(
    base: Base,
    network: nn.Module,
    spec: Spec,
    data: Data,
    recipe: Recipe,
    wanted: Sequence[Target],
    store: Path,
    note: Callable[[str], None],
) -> None:
    """The trial of a user's network on every target, of which it is kept that it went well, folded where its files will
    be. A recipe that only writes the network as it comes has no need of one."""
    from edgewise.network.fold_norms import without_norms
    from edgewise.run import dry_run, lowering_trial
    from edgewise.stages.fold import Fold

    if not (architecture.is_foreign(recipe.model) and dry_run.has_changes(recipe)):
        return
    network_facts = _network_facts(base, network, data, recipe)
    folds = any(isinstance(stage, Fold) for stage in recipe.stages)
    quantized = [target for target in wanted if target.name in recipe.targets] if recipe.quantize is not None else []
    grids = {target: grid for grid, group in share_grids(quantized) for target in group}
    for target in dict.fromkeys(wanted):

        def make(folder: Path, _: Path, target: Target = target) -> None:
            note(f"trying {target.name}")
            images = probe_images(data, spec)
            written = without_norms(network, images[:2]) if folds and target.name in recipe.targets else network
            lowering_trial.try_lowering(written, images, target, recipe.model)
            if target in grids:
                lowering_trial.try_integers(network, images, grids[target], target, recipe.model)
            (folder / "tried.json").write_text(json.dumps(target.name), encoding="utf-8")

        key = key_of(
            kind="lowering trial",
            **network_facts,
            target=target.name,
            folds=folds,
            grid=grids[target].to_json() if target in grids else None,
            code=code_of(lowering_trial, target.export),
            versions=edgewise_targets.versions(("torch", *edgewise_targets.packages(target))),
        )
        Store(store).keep(key, make)


def _add_fold(recipe: Recipe, begun: Start) -> tuple[Recipe, Start]:
    """The recipe with a Fold at the end of its stages where it quantizes and a batch norm would be left."""
    import torch

    from edgewise.stages.fold import Fold

    norms = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in begun.model.modules())
    if recipe.quantize is None or not norms or any(isinstance(stage, Fold) for stage in recipe.stages):
        return recipe, begun
    note = "the recipe quantizes and folds no batch norms before it; a Fold is added at the end of its stages"
    return (
        dataclasses.replace(recipe, stages=(*recipe.stages, Fold())),
        dataclasses.replace(begun, told=(*begun.told, note)),
    )


def _move_softmax(recipe: Recipe, begun: Start) -> tuple[Recipe, Start]:
    """The recipe with one softmax at the end of every file where the network has one, wherever it was."""
    softmax = recipe.preprocess.softmax
    if begun.gave_probabilities:
        return dataclasses.replace(recipe, preprocess=dataclasses.replace(recipe.preprocess, softmax=True)), begun
    if begun.ending != "probabilities":
        return recipe, begun
    note = "the network answers with probabilities, from a softmax inside its own code" + (
        "; --softmax adds no second one" if softmax else ""
    )
    if recipe.weights is None:
        note += (
            ". Training takes logits: such a network learns slowly; return what goes into the softmax, with --softmax"
        )
    new_recipe = dataclasses.replace(recipe, preprocess=dataclasses.replace(recipe.preprocess, softmax=False))
    return new_recipe, dataclasses.replace(begun, told=(*begun.told, note))


def _check_possible(recipe: Recipe, spec: Spec) -> None:
    """The architecture says beside its own code what it cannot go through; better to hear it now than after training."""
    stages = (*recipe.stages, *([] if recipe.quantize is None else [recipe.quantize]))
    for stage in stages:
        traits_of(stage)
    for name in (*map(stage_name, stages), *recipe.targets):
        if name in spec.cannot:
            raise RequestError(f"{spec.name} cannot go through {name}: {spec.cannot[name]}; leave it out of the recipe")


def check_overlap(data: Data, limits: Limits) -> None:
    """Raise RequestError where more test images than allowed are there twice, or among what is trained on."""
    overlap = find_overlap(data)
    if overlap is None:
        return
    if len(overlap.leaked) > limits.max_leaked * overlap.n:
        what = f"{_count_words(overlap.leaked, overlap.n, 'is', 'are')} among the training or calibration images"
        raise RequestError(f"{data.name}: {what}; take them out, or allow a share with Limits(max_leaked=...)")
    if len(overlap.repeated) > limits.max_repeated * overlap.n:
        what = f"{_count_words(overlap.repeated, overlap.n, 'comes', 'come')} a second time in the test part"
        raise RequestError(f"{data.name}: {what}; take them out, or allow a share with Limits(max_repeated=...)")


def _count_words(images: tuple[int, ...], n: int, one: str, many: str) -> str:
    return f"{len(images):,} of {n:,} test images {one if len(images) == 1 else many} (number {images[0]} first)"


def _add_labels(recipe: Recipe, data: Data) -> Recipe:
    """The recipe with the data's class names as labels, where it gives none."""
    labels = recipe.packaging.labels or data.classes
    if len(labels) != len(data.classes):
        raise RequestError(f"the recipe gives {len(labels)} labels, {data.name} has {len(data.classes)} classes")
    return dataclasses.replace(recipe, packaging=dataclasses.replace(recipe.packaging, labels=tuple(labels)))


def _with_main_size(recipe: Recipe, data: Data) -> tuple[Recipe, Data]:
    """The recipe with its main image size first, and the data resized to it."""
    packaging = recipe.packaging
    if packaging.sizes is None:
        return recipe, data
    sizes = with_main_size_first(packaging.sizes, data.shape[1:])
    new_recipe = dataclasses.replace(recipe, packaging=dataclasses.replace(packaging, sizes=sizes))
    return new_recipe, resized.resize_data(data, sizes.choices[0])


def _check_packaging(network: nn.Module, spec: Spec, data: Data, recipe: Recipe, wanted: Sequence[Target]) -> None:
    """Every target can write what is asked for, and the network accepts every size."""
    fed = recipe.preprocess.fed
    for target in wanted:
        if fed not in target.feeds:
            what = "bytes" if fed == "bytes" else "floats with their channels last"
            raise RequestError(
                f"target {target.name!r} writes no file that is fed {what}; leave --feed {fed} out for it"
            )
    if recipe.packaging.sizes is not None:
        check_sizes(network, spec.name, blank_image(data.shape, "normalised"), recipe.packaging.sizes, wanted)


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise RequestError(f"unknown device {device!r}; choices: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device 'cuda' was asked for, but this torch finds no GPU; use --device cpu")


def _begin_network(base: Base, spec: Spec, data: Data, weights: Path | None) -> Start:
    try:
        return start.begin_network(base, probe_images(data, spec), weights)
    except start.CannotTake as error:
        expected, shape = "×".join(map(str, spec.input_shape)), "×".join(map(str, data.shape))
        raise RequestError(
            f"{spec.name} cannot take the images of {data.name} ({shape}; it was published for {expected}): {error}. Choose "
            "another --model or --data"
        ) from error


def _check_forward(network: Any, spec: Spec, data: Data) -> None:
    """As many logits come out for an image as there are classes."""
    import torch

    from edgewise.images.normalise import normalise

    with torch.inference_mode():
        answers = network.eval()(normalise(data.test.batch(torch.tensor([0])), spec))
    if not isinstance(answers, torch.Tensor) or tuple(answers.shape) != (1, len(data.classes)):
        answer = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise RequestError(
            f"{spec.name} answers {answer} for one image; wanted logits (1, {len(data.classes)}), one for each class of "
            f"{data.name}{_hint(answer, len(data.classes))}"
        )


def _hint(answer: Any, classes: int) -> str:
    """What to do about an answer of this shape."""
    if answer == (classes,):
        return ". A squeeze() without a dimension takes the batch away too; use flatten(1)"
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] == 1 and answer[1] > classes:
        return (
            f". Where these are images of some of its {answer[1]:,} classes, name all of them in the order of its outputs: "
            "classes.txt in the images' folder, or classes in the network's file"
        )
    return ""


def _check_alone(network: nn.Module, spec: Spec, data: Data, recipe: Recipe) -> None:
    """Raise RequestError where an answer depends on chance or on other images: folding would be blamed for it."""
    from edgewise.run.dry_run import check_batches

    check_batches(network, probe_images(data, spec), recipe)


def _check_apart(place: Path, store: Path) -> None:
    """Raise RequestError where a report would be written among the kept results, or they among its files."""
    if place.resolve().is_relative_to(store.resolve()):
        raise RequestError(
            f"{place} is where results are kept; choose another folder with --out, or name another with EDGEWISE_STORE"
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
        condition = "is read-only" if there.is_dir() else "is no folder"
        raise RequestError(
            f"results cannot be kept in {place}: {there} {condition}; name another folder with EDGEWISE_STORE"
        )
