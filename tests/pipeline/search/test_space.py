"""Spaces: what they return, what is wrong with them, and what a request changes in their recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise import Recipe, recipes
from edgewise.catalogue import space_names
from edgewise.errors import RequestError
from edgewise.search import spaces
from edgewise.search.first_values import begin_with, first_values
from edgewise.search.quantities import read_bound
from edgewise.search.recipe_text import write_call_text, write_recipe_text
from edgewise.search.space import SpaceError, digest_recipe, load_space
from edgewise.search.spaces import scale_together

optuna = pytest.importorskip("optuna")

SPACE = """
import dataclasses
from helper import half
from edgewise import Prune, recipes
import edgewise.recipes


def good(trial):
    recipe = edgewise.recipes.demo()
    return dataclasses.replace(recipe, stages=(Prune(channels=trial.suggest_float("kept", 0.1, 0.9)), *recipe.stages[1:]))


def dictionary(trial):
    return {"channels": trial.suggest_float("kept", 0.1, 0.9)}


def nothing(trial):
    pass


def fails(trial):
    return 1 / (trial.suggest_int("zero", 0, 0))


def refused(trial):
    return Prune(channels=trial.suggest_float("kept", 1.5, 2.5))


def gives_up(trial):
    import optuna
    raise optuna.TrialPruned("no such pair of values")
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "space.py").write_text(
        SPACE.replace("from edgewise import Prune, recipes", "from edgewise import Prune")
    )
    (tmp_path / "helper.py").write_text("half = 0.5\n")
    return lambda name: f"{tmp_path / 'space.py'}:{name}"


def trial(seed: int = 0, **fixed: Any) -> Any:
    if fixed:
        return optuna.trial.FixedTrial(fixed)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


def test_a_space_of_ones_own_makes_a_recipe_and_counts_all_its_code(write: Callable[[str], str]) -> None:
    space = load_space(write("good"), {})
    recipe = space.make_recipe(trial(kept=0.4))
    assert recipe.describe()["stages"][0]["channels"] == 0.4
    assert set(space.digests()) == {"space.py", "helper.py"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dictionary", "returned dict; a space takes a trial and returns an edgewise.Recipe"),
        ("nothing", "returned NoneType"),
        ("fails", r"ZeroDivisionError: division by zero \(space.py, line \d+\)"),
    ],
)
def test_a_space_that_is_wrong_ends_the_search(name: str, words: str, write: Callable[[str], str]) -> None:
    with pytest.raises(SpaceError, match=words):
        load_space(write(name), {}).make_recipe(trial())


@pytest.mark.parametrize(("name", "words"), [("refused", "Prune.channels"), ("gives_up", "no such pair of values")])
def test_values_that_make_no_recipe_end_one_trial(name: str, words: str, write: Callable[[str], str]) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_space(write(name), {}).make_recipe(trial())
    assert not isinstance(caught.value, SpaceError)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("demoo", "unknown space 'demoo'. Did you mean 'demo'"),
        ("no.py:space", "there is no file no.py"),
        ("no.py", "no.py"),
    ],
)
def test_an_unknown_space_is_told(reference: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_space(reference, {})


@pytest.mark.parametrize("name", space_names())
def test_a_ready_space_makes_recipes_whose_text_makes_them_again(name: str) -> None:
    space, seen = load_space(name, {}), set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for values in first_values(space.function):
        study.enqueue_trial(values)
    for _ in range(12):
        asked = study.ask()
        recipe = space.make_recipe(asked)
        text = write_recipe_text(recipe, "recipe", "From a trial.")
        scope: dict[str, Any] = {}
        exec(compile(text or "", "recipe.py", "exec"), scope)
        assert scope["recipe"]() == recipe
        study.tell(asked, 0.0)
        seen.add(digest_recipe(recipe))
    assert len(seen) > 3


def test_the_ready_recipe_is_among_those_that_its_space_begins_with() -> None:
    (_, floating) = first_values(spaces.demo)
    recipe = spaces.demo(optuna.trial.FixedTrial(floating))
    assert recipe.stages == recipes.demo().stages and recipe.candidates == ("float",)


def test_a_recipe_with_a_class_of_ones_own_is_written_as_a_call() -> None:
    text = write_call_text("a/space.py:mine", {"kept": 0.25}, "recipe", 'About "it".')
    compile(text, "recipe.py", "exec")
    assert "FixedTrial({'kept': 0.25})" in text and "'a/space.py'" in text


def test_limits_are_put_where_the_runs_own_gates_judge_them(write: Callable[[str], str]) -> None:
    limits = [read_bound(text, "--limit") for text in ("drop=0.005", "latency=0.4", "bytes@xnnpack=60000", "ms=5")]
    recipe = load_space(write("good"), {"targets": ("onnx", "xnnpack")}, limits).make_recipe(trial(kept=0.5))
    assert recipe.limits.max_drop == 0.005 and recipe.limits.max_latency_ratio == 1.0
    assert recipe.target_limits["onnx"].max_latency_ratio == 0.4 and recipe.target_limits["onnx"].max_drop == 0.005
    assert recipe.target_limits["xnnpack"].max_bytes == 60000 and recipe.targets == ("onnx", "xnnpack")


def test_numbers_are_what_a_person_would_write(write: Callable[[str], str]) -> None:
    space = load_space(write("good"), {})
    by_steps = space.make_recipe(trial(kept=0.1 + 0.2))
    assert by_steps.describe()["stages"][0]["channels"] == 0.3
    assert digest_recipe(by_steps) == digest_recipe(space.make_recipe(trial(kept=0.3)))


def test_values_to_begin_with_are_kept_in_their_order() -> None:
    @begin_with(a=1)
    @begin_with(a=2, b=3)
    def space(trial: Any) -> Recipe:
        return recipes.demo()

    assert first_values(space) == [{"a": 1}, {"a": 2, "b": 3}] and first_values(recipes.demo) == []


def test_scaling_together_halves_the_work_with_every_unit() -> None:
    one, none = scale_together(1.0), scale_together(0.0)
    assert one.depth * one.width**2 * one.side**2 == pytest.approx(0.5)
    assert (none.depth, none.width, none.side) == (1, 1, 1)
    assert scale_together(2.0).depth == pytest.approx(one.depth**2)
    with pytest.raises(ValueError, match="from 0"):
        scale_together(-1.0)
