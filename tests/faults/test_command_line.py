"""Faults of the matrix through the public command line: the exit status, and that no other gate is red.

A small network of one's own whose last layer is fitted in closed form, its weights and a subset of the digits in files: a run
takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise import calib_data
from edgewise.__main__ import main
from edgewise.images.normalise import normalise

pytest.importorskip("onnxruntime")

MATRIX = Path(__file__).parents[2] / "docs" / "fault-matrix.md"
HEAD = "## Through the command line"

NET = """
from torch import nn


def small(num_classes=10, in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, num_classes),
    )
"""
RECIPE = """
from edgewise import Fold, Limits, Prune, Quantize, Recipe, Train, Training

FREE = {"max_latency_ratio": 1e6, "same_work_ratio": 1e6, "max_step_ratio": 1e6}
LIMITS = Limits(max_drop=0.05, **FREE)


def clean(limits=LIMITS, stages=(Fold(),)):
    return Recipe(
        name="clean", model=r"{folder}/net.py:small", data=r"arrays:{folder}/data.npz",
        baseline=Train(training=Training(epochs=1, lr=0.01)), stages=stages,
        quantize=Quantize(training=None), targets=("onnx",), limits=limits,
    )


def loose():
    return clean(Limits(max_drop=1.0, **FREE))


def strict_sqnr():
    return clean(Limits(max_drop=0.05, min_sqnr_db=60.0, **FREE))


def strict_size():
    return clean(Limits(max_drop=0.05, max_bytes=1_000, **FREE))


def nothing_to_prune():
    return clean(stages=(Prune(channels=0.5, keep=("0", "2")),))
"""


@dataclasses.dataclass(frozen=True)
class Spec:
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


class Place:
    """A folder with a network, its weights, images and recipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "net.py").write_text(NET, encoding="utf-8")
        (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)), encoding="utf-8")
        digits = calib_data.load("digits")
        train, test = digits.train, digits.test
        self.arrays: dict[str, Any] = {
            "x_train": train.batch(torch.arange(len(train)))[:, 0].numpy(), "y_train": train.labels.numpy(),
            "x_test": test.batch(torch.arange(len(test)))[:, 0].numpy(), "y_test": test.labels.numpy(),
        }  # fmt: skip
        self.write_data()
        self.net = fitted(digits)
        torch.save(self.net.state_dict(), folder / "net.pth")

    def write_data(self, **changed: Any) -> None:
        np.savez(self.folder / "data.npz", **(self.arrays | changed))

    def run(self, recipe: str = "clean", out: str = "out", *more: str) -> int:
        return main([
            "run", f"{self.folder / 'recipe.py'}:{recipe}", "--weights", str(self.folder / "net.pth"), "--mean", "0.5",
            "--std", "0.5", "--out", str(self.folder / out), *more,
        ])  # fmt: skip

    def red(self, out: str = "out") -> set[str]:
        """Every gate that did not pass in any row of the run's report."""
        report = json.loads((self.folder / out / "report.json").read_text(encoding="utf-8"))
        return {
            gate for row in report["rows"] for gate, verdict in (row.get("gates") or {}).items() if verdict == "fail"
        }

    def file(self, out: str = "out") -> Path:
        return next((self.folder / out / "artifacts" / "onnx").glob("*.onnx"))


def fitted(data: Any) -> nn.Module:
    """Random convolutions and the linear layer that fits the training images best (ridge regression)."""
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.manual_seed(0)
    net: nn.Module = space["small"]().eval()
    with torch.no_grad():
        features = net[:5](normalise(data.train.batch(torch.arange(len(data.train))), Spec())).double()  # type: ignore[index]
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        wanted = 8 * nn.functional.one_hot(data.train.labels, 10).double()
        gram = features.T @ features + 0.1 * torch.eye(features.shape[1])
        solved = torch.linalg.solve(gram, features.T @ wanted).T.float()
        net[5].weight.copy_(solved[:, :-1])  # type: ignore[index]
        net[5].bias.copy_(solved[:, -1])  # type: ignore[index]
    return net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A clean run, which is the first test."""
    place = Place(tmp_path_factory.mktemp("place"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_STORE", str(place.folder / "store"))
        assert place.run() == 0
        assert place.red() == set()
    return place


@pytest.fixture
def place(made: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("EDGEWISE_STORE", str(made.folder / "store"))
    return made


# the faults: each gives the exit status and the gates that are red, or the words by which the command refuses


def labels_off_by_one(place: Place) -> tuple[int, set[str]]:
    place.write_data(y_test=(place.arrays["y_test"] + 1) % 10)
    return place.run("loose", "labels"), place.red("labels")


def repeated_image(place: Place) -> tuple[int, set[str]]:
    images = place.arrays["x_test"].copy()
    images[0] = images[1]
    place.write_data(x_test=images)
    return place.run(out="repeated"), set()


def leaked_image(place: Place) -> tuple[int, set[str]]:
    images = place.arrays["x_test"].copy()
    images[0] = place.arrays["x_train"][0]
    place.write_data(x_test=images)
    return place.run(out="leaked"), set()


def constant(place: Place) -> tuple[int, set[str]]:
    state = dict(place.net.state_dict())
    state["5.bias"] = state["5.bias"] + 1e4 * (torch.arange(10) == 3)
    torch.save(state, place.folder / "net.pth")
    return place.run("loose", "constant", "--float"), place.red("constant")


def nothing_pruned(place: Place) -> tuple[int, set[str]]:
    return place.run("nothing_to_prune", "pruned"), set()


def noisy_answers(place: Place) -> tuple[int, set[str]]:
    return place.run("strict_sqnr", "sqnr"), place.red("sqnr")


def too_large(place: Place) -> tuple[int, set[str]]:
    return place.run("strict_size", "size"), place.red("size")


def corrupted_scale(place: Place) -> tuple[int, set[str]]:
    """In a delivered file, whose card and list of digests are left."""
    import onnx
    from onnx import numpy_helper

    shutil.copytree(place.folder / "out", place.folder / "scale")
    path = place.file("scale")
    model = onnx.load(path)
    scale = next(t for t in model.graph.initializer if t.data_type == 1 and list(t.dims) == [12])
    values = numpy_helper.to_array(scale).copy()
    values[3] *= 1.25
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    onnx.save(model, path)
    return main(["verify", str(path)]), set()


def lost_top1(place: Place) -> tuple[int, set[str]]:
    """A later run whose network tells a class otherwise, held against the clean one."""
    state = {name: value.clone() for name, value in place.net.state_dict().items()}
    state["5.weight"][7] = state["5.weight"][7] * 0.2
    torch.save(state, place.folder / "net.pth")
    assert place.run(out="later") in (0, 1)
    return main(["compare", str(place.folder / "out"), str(place.folder / "later"), "--seconds", "0"]), set()


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table."""

    name: str
    command: str
    inject: Callable[[Place], tuple[int, set[str]]]
    gate: str
    status: int = 1
    told: str = ""
    """What the command says, where no report holds the gate."""


FAULTS = (
    Fault("labels off by one", "run", labels_off_by_one, "labels"),
    Fault("a test image twice", "run", repeated_image, "images", 2, "a second time in the test part"),
    Fault("a test image among the training images", "run", leaked_image, "images", 2, "training"),
    Fault("always the same answer", "run", constant, "answers"),
    Fault("a prune that removes nothing", "run", nothing_pruned, "plan", 2, "no layer of this network can be pruned"),
    Fault("answers noisier than the recipe allows", "run", noisy_answers, "SQNR"),
    Fault("a file larger than the recipe allows", "run", too_large, "size"),
    Fault(
        "one channel's scale a quarter larger", "verify", corrupted_scale, "files", 1, "not the file that was verified"
    ),
    Fault("a network that tells a class less well", "compare", lost_top1, "top-1", 1, "worse"),
)


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.inject.__name__)
def test_a_fault_ends_the_command_with_its_status(
    planted: Fault, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status, red = planted.inject(place)
    finally:
        place.write_data()
        torch.save(place.net.state_dict(), place.folder / "net.pth")
    said = "".join(capfd.readouterr())
    assert status == planted.status, said
    assert "Traceback" not in said
    if planted.told:
        assert planted.told in " ".join(said.split()), said
    else:
        assert red == {planted.gate}, said


def table() -> str:
    lines = [
        HEAD,
        "",
        "Planted in a small network of one's own, its weights and images in files; the run without a fault ends with 0.",
        "",
        "| fault | command | gate | exit status |",
        "|---|---|---|---|",
        *(f"| {planted.name} | {planted.command} | {planted.gate} | {planted.status} |" for planted in FAULTS),
    ]
    return "\n".join([*lines, ""])


def test_the_table_in_the_documentation_is_what_is_checked() -> None:
    before, _, after = MATRIX.read_text(encoding="utf-8").partition(HEAD)
    if os.environ.get("EDGEWISE_WRITE_MATRIX"):
        MATRIX.write_text(f"{before.rstrip()}\n\n{table()}", encoding="utf-8")
        before, _, after = MATRIX.read_text(encoding="utf-8").partition(HEAD)
    assert HEAD + after == table(), "write it anew: nox -s faults"
