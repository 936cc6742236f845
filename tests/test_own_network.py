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

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgewise.store.machine import cpu_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own-network.md"
COUNTED = re.compile("<!-- counted -->.*?<!-- /counted -->", re.DOTALL)
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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EDGEWISE_STORE": str(tmp_path / "store")}
    commands = documented_commands()
    began, worked = time.monotonic(), processor_seconds()
    for command in commands:
        arguments = [sys.executable, "-m", "edgewise", *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if "--dry-run" in command:
            assert "Proof: 400 test images" in done.stderr and not (tmp_path / "runs" / "net" / "report.json").exists()
    minutes, seconds = (time.monotonic() - began) / 60, processor_seconds() - worked
    document = json.loads((tmp_path / "runs" / "net" / "report.json").read_text(encoding="utf-8"))
    assert [entry["target"] for entry in document["recommended"]] == ["onnx"]
    (int8,) = (row for row in document["rows"] if row["step"] == "artifact" and row["precision"] == "int8")
    # Of a machine that others use no time can be proved; everything else can.
    assert int8["verification"] == "runtime" and {**int8["gates"], "latency": "pass"} == dict.fromkeys(
        int8["gates"], "pass"
    )
    assert "1 of " in (tmp_path / "run.log").read_text(encoding="utf-8")
    assert (tmp_path / "runs/net/artifacts/onnx/net-quantize.onnx.md").is_file()
    if os.environ.get("EDGEWISE_WRITE_COUNT") and int8["verdict"] == "pass":
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(COUNTED.sub(describe_count(len(commands), minutes, seconds), text), encoding="utf-8")


def describe_count(commands: int, minutes: float, seconds: float) -> str:
    """What the page says of the commands above it."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[2]
    return (
        f"<!-- counted -->\nCounted by a test on a small network and 520 images of 32 × 32 pixels: {commands} commands, {minutes:.1f} "
        f"minutes and {seconds:.0f}\nseconds of processor time to an int8 file that passed (n = 1, {cores} cores of an {cpu_name()}, at a load of {load:.0f}).\n"
        "<!-- /counted -->"
    )


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
