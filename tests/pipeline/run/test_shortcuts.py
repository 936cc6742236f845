"""A network of one's own without a recipe file, and the changes that the command line makes to any recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.recipes import cifar_resnet20, demo, quantize_only
from edgewise.run.shortcuts import Shortcuts, name_of, own_recipe, shorten_recipe
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune


def test_one_s_own_network_is_quantized_and_nothing_else() -> None:
    recipe = own_recipe("dir/my net.py:build", "imagefolder:images", "w.pt", Shortcuts())
    assert (recipe.name, recipe.model, recipe.data) == ("my_net", "dir/my net.py:build", "imagefolder:images")
    assert recipe.weights == "w.pt" and recipe.stages == (Fold(),) and recipe.candidates == ("float", "int8")
    assert recipe.quantize is not None and recipe.quantize.when_needed and recipe.quantize.training is not None


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [(None, None, "no --model and no --data"), ("m", None, "no --data"), (None, "d", "no --model")],
)
def test_what_is_missing_is_named(model: str | None, data: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        own_recipe(model, data, "w.pt", Shortcuts())


def test_without_weights_a_baseline_is_trained_only_where_that_was_asked_for() -> None:
    with pytest.raises(RequestError, match="--weights F, or have a baseline trained with --epochs"):
        own_recipe("resnet20", "digits", None, Shortcuts())
    recipe = own_recipe("resnet20", "digits", None, Shortcuts(epochs=7, lr=0.2))
    assert (recipe.baseline.training.epochs, recipe.baseline.training.lr) == (7, 0.2)


@pytest.mark.parametrize(
    ("model", "name"), [("resnet18", "resnet18"), ("a/b.py:c", "b"), ("../x-y.py:c", "x_y"), (".py:c", "py")]
)
def test_a_run_is_called_as_its_model(model: str, name: str) -> None:
    assert name_of(model) == name


def test_prune_keeps_a_share_of_the_macs_and_brings_a_fine_tune() -> None:
    first, second, *rest = shorten_recipe(quantize_only(), Shortcuts(prune=0.5, epochs=3, lr=0.02)).stages
    assert isinstance(first, Prune) and first.macs == 0.5
    assert isinstance(second, Finetune) and (second.training.epochs, second.training.lr) == (3, 0.02)
    assert rest == [Fold()]


def test_prune_takes_the_place_of_a_recipe_s_own_budget() -> None:
    changed = shorten_recipe(demo(), Shortcuts(prune=0.25)).stages
    assert isinstance(changed[0], Prune) and changed[0].macs == 0.25
    budgets = [
        name
        for name in ("channels", "macs", "params", "bytes", "latency", "milliseconds")
        if getattr(changed[0], name) is not None
    ]
    assert budgets == ["macs"] and changed[1:] == demo().stages[1:]


def test_epochs_reach_every_fine_tune_and_where_there_is_none_the_quantization() -> None:
    tuned = shorten_recipe(cifar_resnet20(), Shortcuts(epochs=2))
    assert [s.training.epochs for s in tuned.stages if isinstance(s, Finetune)] == [2]
    assert tuned.quantize == cifar_resnet20().quantize
    trained = shorten_recipe(quantize_only(), Shortcuts(epochs=9)).quantize
    assert trained is not None and trained.training is not None and trained.training.epochs == 9


def test_the_allowed_loss_is_changed_and_nothing_else() -> None:
    assert shorten_recipe(demo(), Shortcuts(max_drop=0.003)) == replace(
        demo(), limits=replace(demo().limits, max_drop=0.003)
    )
    assert shorten_recipe(demo(), Shortcuts()) == demo()


def test_changes_that_apply_to_nothing_are_refused() -> None:
    bare: Recipe = replace(quantize_only(), quantize=None, candidates=(), weights="w.pt")
    with pytest.raises(RequestError, match="trains nothing after its baseline"):
        shorten_recipe(bare, Shortcuts(epochs=3))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 50, float("nan")])
def test_a_share_lies_between_nothing_and_all(share: float) -> None:
    with pytest.raises(RequestError, match="above 0 and below 1"):
        Shortcuts(prune=share)
    with pytest.raises(RequestError, match="--epochs"):
        Shortcuts(epochs=0)
