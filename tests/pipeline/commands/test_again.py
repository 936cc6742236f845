"""A finished run answers the same request again, and nothing that counts may change without being noticed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgewise.__main__ import _parser, main
from edgewise.commands import again
from edgewise.store import finished

NET = """
import json
import os
from pathlib import Path

from blocks import head

mean, std, input_shape = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (3, 8, 8)


def build(num_classes=2):
    settings = json.loads((Path(__file__).parent / "settings.json").read_text())
    return head(settings["wide"] * int(os.environ.get("TIMES", "1")), num_classes)
"""
BLOCKS = """
from torch import nn


def head(wide, classes):
    return nn.Sequential(nn.Conv2d(3, wide, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))
"""
RECIPE = """
import dataclasses

from edgewise import Limits
from edgewise.recipes import quantize_only


def mine():
    return dataclasses.replace(
        quantize_only(), name="mine", model="net.py:build", data="imagefolder:images?classes=names.txt", weights="w.pt",
        stages=(), quantize=None, candidates=("float",), targets=("onnx",),
        limits=Limits(max_latency_ratio=10),  # which no busy machine can leave open
    )
"""
WORDS = ["run", "recipe.py:mine", "--max-drop", "0.5", "--out", "out"]


def make_weights(path: Path) -> None:
    """They tell dark from light by construction: the last layer reads the mean brightness."""
    signs = torch.tensor([[-1.0], [1.0]])
    tensors = {"0.weight": torch.full((4, 3, 3, 3), 0.05), "0.bias": torch.zeros(4)}
    torch.save(tensors | {"4.weight": signs.repeat(1, 4), "4.bias": -signs.flatten()}, path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a run of a user's own network, images and recipe has ended."""
    pytest.importorskip("onnxruntime")
    folder, before = tmp_path_factory.mktemp("home"), Path.cwd()
    for name, text in (
        ("net.py", NET), ("blocks.py", BLOCKS), ("recipe.py", RECIPE), ("settings.json", '{"wide": 4}'),
        ("names.txt", "dark\nlight\n"),
    ):  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8")
    draw = np.random.default_rng(0)
    for brightness, name in enumerate(("dark", "light")):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(30):
            pixels = draw.integers(0, 100, (8, 8, 3)) + 120 * brightness
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{index}.png")
    make_weights(folder / "w.pt")
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEWISE_STORE", str(folder / "store"))
    patch.chdir(folder)
    assert main(WORDS) == 0
    assert list((folder / "store" / finished.FOLDER).iterdir())
    yield folder
    patch.undo()
    assert Path.cwd() == before


@pytest.fixture
def options(home: Path) -> argparse.Namespace:
    """The same request once more, which the finished run answers."""
    parsed = _parser().parse_args(WORDS)
    assert again.recall_finished(parsed) is not None
    return parsed


def test_the_same_request_is_answered_by_the_kept_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")}
    status = main(WORDS)
    first = capsys.readouterr()
    assert "nothing has changed since" in first.err and "baseline" in first.out
    assert before == {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")}
    assert main([*WORDS, "--json"]) == status
    assert capsys.readouterr().out.startswith('{\n "schema": 1')


def write_text(text: str) -> Callable[[Path], None]:
    """What puts another text into a file."""
    return lambda path: path.write_text(text, encoding="utf-8") and None


def repaint(path: Path) -> None:
    """One pixel changed."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def turn_byte(path: Path) -> None:
    """The last byte changed, the size kept."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "the network's file": ("net.py", write_text(NET + "\n# other\n")),
    "a file that it imports": ("blocks.py", write_text(BLOCKS.replace("nn.ReLU", "nn.ReLU6"))),
    "a file that it reads": ("settings.json", write_text('{"wide": 5}')),
    "the recipe's file": ("recipe.py", write_text(RECIPE.replace("stages=()", "stages=(), trials=2"))),
    "a pixel": ("images/dark/3.png", repaint),
    "an image's bytes alone": ("images/light/3.png", turn_byte),
    "an image less": ("images/light/4.png", Path.unlink),
    "the list of classes": ("names.txt", write_text("light\ndark\n")),
    "the weights": ("w.pt", turn_byte),
    "the report": ("out/report.json", write_text("{}")),
    "the page": ("out/report.html", turn_byte),
    "the outcomes": ("out/outcomes.safetensors", turn_byte),
    "the store's record of it": (f"store/{finished.FOLDER}/*.json", write_text('{"run": {}}')),
    "a digit of that record": (f"store/{finished.FOLDER}/*.json", lambda path: path.write_text(path.read_text().replace("1", "2", 1))),
    "a written file": ("out/artifacts/onnx/*.onnx", turn_byte),
    "its card": ("out/artifacts/onnx/*.card.json", Path.unlink),
    "its network": ("out/checkpoints/*/model.safetensors", turn_byte),
    "a result in the store": ("store/????????????????????????????????????????????????????????????????/entry.json", Path.unlink),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_counts_may_not_change(change: str, home: Path, options: argparse.Namespace) -> None:
    pattern, alter = CHANGES[change]
    path = sorted(home.glob(pattern))[0]
    content = path.read_bytes()
    alter(path)
    assert again.recall_finished(options) is None
    path.write_bytes(content)
    assert again.recall_finished(options) is not None


def test_an_image_more_counts(home: Path, options: argparse.Namespace) -> None:
    more = home / "images" / "dark" / "new.png"
    more.write_bytes((home / "images" / "dark" / "0.png").read_bytes())
    assert again.recall_finished(options) is None
    more.unlink()


@pytest.mark.parametrize(("variable", "value"), [("OMP_NUM_THREADS", "7"), ("TIMES", "2"), ("MKL_DYNAMIC", "0")])
def test_variables_count(
    variable: str, value: str, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert again.recall_finished(options) is None


@pytest.mark.parametrize(
    "more", [["--max-drop", "0.4"], ["--keep-going"], ["--target", "xnnpack"], ["--softmax"], ["--sign", "key.pem"]]
)
def test_other_words_are_another_request(more: list[str], home: Path) -> None:
    assert again.recall_finished(_parser().parse_args([*WORDS, *more])) is None


def test_the_folder_of_the_request_counts(
    home: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home / "images")
    assert again.recall_finished(options) is None


def test_packages_count(tmp_path: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert again.recall_finished(options) is not None
    (tmp_path / "torch_helper-1.0.dist-info").mkdir()
    assert again.recall_finished(options) is None


def test_this_program_counts(tmp_path: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    files = finished.project_files()
    monkeypatch.setattr(finished, "project_files", lambda: files)
    assert again.recall_finished(options) is not None
    (tmp_path / files[9].name).write_bytes(files[9].read_bytes() + b"\n")
    monkeypatch.setattr(finished, "project_files", lambda: [*files[:9], tmp_path / files[9].name, *files[10:]])
    assert again.recall_finished(options) is None


@pytest.mark.parametrize("during", [False, True])
def test_what_changes_while_it_runs_is_not_remembered(
    during: bool, home: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = finished.recall_run(home / "store", again._words(options))
    assert kept is not None
    from edgewise.commands.request import request_recipe, resolve_request

    recipe = request_recipe(options)
    survey = again.survey_request(options, recipe)
    job = resolve_request(options, recipe)
    record = next((home / "store" / finished.FOLDER).iterdir())
    record.unlink()
    if during:
        image = home / "images" / "dark" / "5.png"
        image.write_bytes(image.read_bytes())  # what another wrote may be put back by the end: writing tells
    again.remember_finished(survey, options, recipe, job, [])
    assert record.exists() is not during
    finished.remember_run(home / "store", again._words(options), kept)


def test_variables_that_libraries_set_meanwhile_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = finished.survey_ground(())
    monkeypatch.setenv("TORCH_SOMETHING", "1")
    assert finished.is_ground_still(ground) and finished.survey_ground(()) != ground
    assert not finished.is_ground_still(ground | {"program": "another"})


def test_it_needs_no_torch_where_no_code_is_the_users(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgewise.commands import again\nfrom edgewise.report import document, page, terminal\n"
        "from edgewise.store import finished\nfinished.survey_ground([])\n"
        "assert not {'torch', 'numpy', 'scipy', 'statsmodels'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
