"""What substitution costs and saves, stage by stage: the whole command on digits, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.recipes import demo, separate_resnet20
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.separate import Separate
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.studies import substitution as command
from edgewise.verify.gates import Limits

NAMES = ["baseline", "fitted filters", "fresh filters", "distilled block by block", "finetune", "fold"]


def short() -> Recipe:
    """A network that has just learnt digits; two of its convolutions replaced, distilled and tuned for a moment."""
    how = Training(epochs=8, lr=0.1, batch_size=64, warmup=1, augment=Augment(crop=0), precision="32-true")
    tune = Training(epochs=1, lr=0.01, batch_size=64, distill=0.5, augment=Augment(crop=0), precision="32-true")
    return Recipe(
        name="short",
        model="tiny_resnet",
        data="digits",
        baseline=Train(training=how),
        stages=(
            Separate(max_error=0.9, max_layers=2, recover_steps=20, measure_time=False),
            Finetune(training=tune),
            Fold(),
        ),
        targets=("onnx",),
        limits=Limits(max_drop=0.9, max_latency_ratio=100),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_STORE", str(folder / "store"))
        assert command.main([f"{__file__}:short", "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(written: Path) -> dict[str, Any]:
    document = json.loads((written / "out" / "substitution.json").read_text(encoding="utf-8"))
    return {row["name"] if not row["target"] else row["target"]: row for row in document["rows"]}


def test_every_stage_is_a_row_in_its_order(rows: dict[str, Any]) -> None:
    assert list(rows) == [*NAMES, "onnx"]
    assert all(row["accuracy"]["n"] == 540 for row in rows.values())


def test_the_variants_replace_the_same_layers(rows: dict[str, Any]) -> None:
    """They differ in their values alone, and cost less than the dense network."""
    assert len({(rows[name]["macs"], rows[name]["params"]) for name in NAMES[1:4]}) == 1
    assert rows["fitted filters"]["macs"] < rows["baseline"]["macs"]


def test_fitted_filters_keep_what_fresh_ones_lose(rows: dict[str, Any]) -> None:
    top1 = {name: row["accuracy"]["top1"] for name, row in rows.items()}
    assert top1["fresh filters"] < top1["fitted filters"] <= 1
    assert top1["finetune"] > top1["fresh filters"]


def test_the_tables_say_what_the_layers_saved(written: Path, rows: dict[str, Any]) -> None:
    document = json.loads((written / "out" / "substitution.json").read_text(encoding="utf-8"))
    layers = document["layers"]
    assert layers["accepted"] == 2 and layers["fewer"] == layers["dense_macs"] / layers["new_macs"] > 2
    saved = rows["baseline"]["macs"] - rows["fitted filters"]["macs"]
    assert saved == layers["dense_macs"] - layers["new_macs"]
    text = (written / "out" / "substitution.md").read_text(encoding="utf-8")
    assert text.startswith(f"2 of {layers['of']} convolutions replaced") and "| onnx file |" in text
    assert (written / "out" / "report.html").exists()


def test_the_same_command_goes_on_from_the_store(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: dict[str, Any]
) -> None:
    monkeypatch.setenv("EDGEWISE_STORE", str(written / "store"))
    assert command.main([f"{__file__}:short", "--out", str(written / "again"), "--json"]) == 0
    told = capsys.readouterr()
    again = json.loads(told.out)["rows"]
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows.values()]
    assert "training" not in told.err, "nothing is trained twice"


def test_a_recipe_without_substitution_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no Separate stage"):
        command._taken_apart(replace(demo(), stages=(Fold(),)))
    assert command.main(["separate_resnet21", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'separate_resnet20'" in capsys.readouterr().err


def test_what_comes_before_and_after_the_substitution_is_kept() -> None:
    stage, before, after = command._taken_apart(demo())
    stages = demo().stages
    assert isinstance(stage, Separate) and (*before, stage, *after) == stages and len(before) == 2


def test_a_shorter_fine_tuning_changes_nothing_else() -> None:
    recipe = separate_resnet20()
    shorter = command._shorten_training(recipe, 3)
    assert [getattr(stage, "training", None) and stage.training.epochs for stage in shorter.stages] == [None, 3, None]
    assert shorter.stages[0] == recipe.stages[0] and shorter.baseline == recipe.baseline
    assert command._shorten_training(recipe, None) is recipe
