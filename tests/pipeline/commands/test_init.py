"""``edgewise init``: the recipe that it writes is what a run without one does, and its comments are code that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from edgewise.__main__ import main
from edgewise.catalogue import find_recipe
from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.run.shortcuts import Shortcuts, own_recipe
from edgewise.stage import stage_name


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of the small network, in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.save(architecture.build(Base("tiny_resnet", 10, 1)).state_dict(), "w.pt")
    return "w.pt"


def test_the_recipe_is_that_of_a_run_without_one(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--model", "tiny_resnet", "--data", "digits", "--weights", weights]) == 0
    assert capsys.readouterr().out == "edgewise run recipe.py:tiny_resnet --dry-run\n"
    assert find_recipe("recipe.py:tiny_resnet") == own_recipe("tiny_resnet", "digits", weights, Shortcuts())
    text = Path("recipe.py").read_text(encoding="utf-8")
    assert "    edgewise run recipe.py:tiny_resnet --dry-run\n" in text
    assert "540 test images of 1×8×8" in text and "can go ('" in text and "batch norms: each goes into" in text


def test_its_comments_are_steps_that_can_be_taken_in(weights: str) -> None:
    assert main(["init", "--model", "tiny_resnet", "--data", "digits", "--weights", weights, "--target", "onnx"]) == 0
    text = Path("recipe.py").read_text(encoding="utf-8")
    Path("all.py").write_text(re.sub(r"# (\w+\(.*\),)$", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    found = [stage_name(stage) for stage in find_recipe("all.py:tiny_resnet").stages]
    assert found == ["prune", "finetune", "removeblocks", "fold"]


def test_without_weights_a_baseline_is_trained(weights: str) -> None:
    assert main(["init", "--model", "tiny_resnet", "--data", "digits", "--max-drop", "0.03", "--out", "mine.py"]) == 0
    recipe = find_recipe("mine.py:tiny_resnet")
    assert recipe.weights is None and recipe.baseline.training.epochs == 30 and recipe.limits.max_drop == 0.03


def test_nothing_is_overwritten(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.py").write_text("mine", encoding="utf-8")
    asked = ["init", "--model", "tiny_resnet", "--data", "digits", "--weights", weights]
    assert main(asked) == 2 and "recipe.py is there already" in capsys.readouterr().err
    assert main([*asked, "--out", "nowhere/recipe.py"]) == 2 and main([*asked, "--out", "recipe.txt"]) == 2
    assert Path("recipe.py").read_text(encoding="utf-8") == "mine"
