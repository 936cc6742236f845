"""Adding a target is one new file: put into a copy of the project, it is listed, run, timed, verified and re-checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TARGET = '''"""PyTorch's own exported program: a .pt2 file, run by PyTorch."""

import torch

from edgewise.targets import USUAL, Artifact, Grid, Target
from edgewise.targets._quantizer import int8_quantizer


def export(program, path, packaging=USUAL):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return Artifact(target="paper", path=path, precision="float32", facts={"nodes": len(program.graph.nodes)})


def load(path, threads):
    module = torch.export.load(path).module()
    return lambda images: torch.cat([module(image[None]) for image in images])


TARGET = Target(
    name="paper", summary="PyTorch itself", suffix=".pt2", extra="paper", needs=("torch",), grids=(Grid(),),
    quantizer=int8_quantizer, export=export, load=load,
)
'''

RECIPE = """
from edgewise.stages.train import Train
from edgewise.recipe import Recipe
from edgewise.stages.training.settings import Training


def short():
    train = Train(training=Training(epochs=1, lr=0.1))
    return Recipe(name="short", model="tiny_resnet", data="digits", baseline=train, targets=("paper",), runtime="paper")
"""


@pytest.mark.slow
def test_one_new_file_goes_the_whole_way(tmp_path: Path) -> None:
    for package in ("pipeline", "models", "targets", "calib_data"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "targets/paper.py").write_text(TARGET, encoding="utf-8")
    (tmp_path / "recipe.py").write_text(RECIPE, encoding="utf-8")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "edgewise", *arguments]
        environment = os.environ | {"EDGEWISE_STORE": str(tmp_path / "store"), "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(run("list", "targets", "--json"))["targets"]
    assert any(entry["name"] == "paper" and "exported program" in entry["summary"] for entry in listed)
    report = json.loads(run("run", "recipe.py:short", "--out", "out", "--json"))
    row = report["rows"][-1]
    assert (row["target"], row["verification"], row["verdict"]) == ("paper", "runtime", "pass")
    assert row["agreement"]["top1"] == 1 and row["latency"]["on"] == "paper" and row["facts"]["nodes"] > 10
    path = f"out/{report['artifacts'][0]['path']}"
    assert json.loads(run("verify", path, "--data", "digits", "--json"))["verdict"] == "pass"
