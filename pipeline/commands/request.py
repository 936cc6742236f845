"""From the arguments of ``edgewise run`` to a recipe and a job."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewise.recipe import Recipe
    from edgewise.run.job import Job


def request_recipe(options: argparse.Namespace, note: Callable[[str], None] | None = None) -> Recipe:
    """The recipe that the arguments ask for; ``note`` is told what takes a while. Torch only once the words make sense."""
    from edgewise.catalogue import check_recipe_name, check_words, find_recipe

    if options.recipe is None and options.model is None:
        options.parser.error("wanted a RECIPE, or --model and --data (and --weights) for a network of your own")
    if options.recipe is not None:
        check_recipe_name(options.recipe)
    check_words(
        options.model,
        options.weights,
        options.data,
        [*(options.target or ()), *([options.runtime] if options.runtime else [])],
    )
    if note is not None:
        note("loading PyTorch")
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    recipe = None if options.recipe is None else find_recipe(options.recipe)
    from edgewise.run.request import override_fields, sizes_from_arguments, with_packaging
    from edgewise.run.shortcuts import Shortcuts, own_recipe, shorten_recipe

    shortcuts = Shortcuts(prune=options.prune, epochs=options.epochs, lr=options.lr, max_drop=options.max_drop)
    if recipe is None:
        recipe = own_recipe(options.model, options.data, options.weights, shortcuts)
    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device", "runtime")}
    changes["expect_top1"] = options.expect_top1
    for name in ("mean", "std"):
        changes[name] = tuple(getattr(options, name)) if getattr(options, name) else None
    changes["targets"] = tuple(options.target) if options.target else None
    recipe = shorten_recipe(override_fields(recipe, changes), shortcuts)
    return with_packaging(
        without_quantization(recipe) if options.float else recipe,
        sizes_from_arguments(options.input_size, options.input_size_range),
        {"fed": options.feed, "softmax": options.softmax},
    )


def resolve_request(options: argparse.Namespace, recipe: Recipe, note: Callable[[str], None] = lambda _: None) -> Job:
    """The job that the arguments ask for, everything looked up and checked."""
    from edgewise.run.job import resolve_recipe
    from edgewise.run.shortcuts import name_of

    place = options.out
    if place is None and options.recipe is not None and options.model is not None:
        place = Path("runs") / f"{recipe.name}-{name_of(options.model)}"
    return resolve_recipe(recipe, place, note)


def without_quantization(recipe: Recipe) -> Recipe:
    """The recipe without its quantization and the files that need it."""
    others = tuple(name for name in recipe.candidates if name != "int8")
    return dataclasses.replace(recipe, quantize=None, candidates=others)
