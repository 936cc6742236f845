"""Recipes as values: their description, their limits and the stages that there are."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
from typing import Any

import pytest
from torch import nn

import edgewise
from edgewise import recipes
from edgewise.catalogue import recipe_names, stage_names
from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.stage import Context, describe_stage, in_range, stage_name, track_silently
from edgewise.verify.gates import Limits


def stage_classes() -> dict[str, type[Any]]:
    """Lower-case name -> class, for every stage that the catalogue lists."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.walk_packages(edgewise.__path__, "edgewise."):
        if not module.name.endswith("__main__"):
            classes = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
            found |= {name.lower(): kind for name, kind in classes if kind.__module__.startswith("edgewise")}
    return {name: found[name] for name in stage_names()}


@pytest.mark.parametrize("name", recipe_names())
def test_ready_recipes_describe_themselves_in_json(name: str) -> None:
    recipe = getattr(recipes, name)()
    document = recipe.describe()
    assert json.loads(json.dumps(document, allow_nan=False))["name"] == recipe.name == name
    assert set(document) == {field.name for field in dataclasses.fields(Recipe)}
    assert [stage["stage"] for stage in document["stages"]] == [stage_name(stage) for stage in recipe.stages]
    assert document["limits"]["max_drop"] == recipe.limits.max_drop


def test_description_tells_recipes_apart() -> None:
    recipe = recipes.demo()
    other = dataclasses.replace(recipe, seed=1)
    assert recipe.describe() == recipes.demo().describe() != other.describe()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_drop": -0.01},
        {"max_drop": 1.01},
        {"max_drop": math.nan},
        {"max_latency_ratio": -1.0},
        {"max_latency_ratio": math.nan},
        {"max_latency_ratio": math.inf},
        {"min_agreement": 1.5},
        {"max_undelegated": -1},
    ],
)
def test_limits_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_at_the_ends_of_their_ranges() -> None:
    assert Limits(max_drop=0, min_agreement=1, max_undelegated=0).max_undelegated == 0
    assert Limits(max_drop=1, max_latency_ratio=1e6).max_latency_ratio == 1e6


@pytest.mark.parametrize("value", [math.nan, 0.9, 2.1, math.inf])
def test_in_range_refuses(value: float) -> None:
    with pytest.raises(RequestError, match="share must lie in 1 … 2"):
        in_range("share", value, 1, 2)


@pytest.mark.parametrize("value", [1, 1.5, 2])
def test_in_range_includes_both_ends(value: float) -> None:
    in_range("share", value, 1, 2)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"targets": ()}, "names no target"),
        ({"targets": ("onnx", "onnx")}, "names a target twice"),
        ({"threads": 0}, "threads must lie in 1"),
    ],
)
def test_recipes_that_contradict_themselves(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RequestError, match=wanted):
        dataclasses.replace(recipes.demo(), **change)


@pytest.mark.parametrize("name", stage_names())
def test_stages_are_documented_frozen_dataclasses(name: str) -> None:
    kind = stage_classes()[name]
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    # A dataclass without a docstring is given its signature as one.
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    assert kind.__doc__.split("\n")[0] == stage_names()[name]


def test_every_stage_of_a_ready_recipe_is_listed() -> None:
    used = {stage_name(stage) for name in recipe_names() for stage in getattr(recipes, name)().stages}
    assert used and used <= set(stage_names())


def test_describe_refuses_what_is_no_dataclass() -> None:
    def stage(model: nn.Module, ctx: Context) -> nn.Module:
        return model

    with pytest.raises(RequestError, match="must be a frozen dataclass"):
        describe_stage(stage)


def test_silent_passes_everything_on() -> None:
    assert list(track_silently([3, 1, 2], "counting")) == [3, 1, 2]
