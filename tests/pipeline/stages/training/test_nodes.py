"""Two processes as two machines: one runs the recipe, the other trains along, and the result is that of two devices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.errors import RequestError
from edgewise.stages.training import nodes
from edgewise.stages.training.settings import Training

TWO = Training(epochs=1, lr=0.1, nodes=2)

RECIPE = """
import dataclasses
from edgewise import Quantize, Training
from edgewise.recipes import quantize_only

def shared(nodes, devices):
    train = Training(epochs=4, lr=0.05, batch_size=32, precision="32-true", nodes=nodes, devices=devices)
    tune = Training(epochs=1, lr=0.0001, distill=0.9, precision="32-true", nodes=nodes, devices=devices)
    recipe = quantize_only()
    return dataclasses.replace(
        recipe, name="shared", model="net.py:build", baseline=dataclasses.replace(recipe.baseline, training=train),
        quantize=Quantize(training=tune, sensitivity=0), candidates=("int8",),
    )

def on_nodes():
    return shared(2, 1)

def on_devices():
    return shared(1, 2)
"""
NET = """
from torch import nn

class Own(nn.Sequential):
    pass

def build(num_classes=10, in_channels=1):
    return Own(nn.Conv2d(in_channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
               nn.Linear(144, num_classes))
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_by_itself_leads(alone: pytest.MonkeyPatch) -> None:
    assert nodes.count_processes() == 1 and not nodes.is_follower()
    alone.setenv("RANK", "3")
    assert not nodes.is_follower(), "a rank alone, left over in a shell, makes no follower"


@pytest.mark.parametrize(("size", "rank"), [("WORLD_SIZE", "RANK"), ("SLURM_NTASKS", "SLURM_PROCID")])
def test_launchers_tell_who_follows(alone: pytest.MonkeyPatch, size: str, rank: str) -> None:
    alone.setenv(size, "2")
    alone.setenv(rank, "0")
    assert nodes.count_processes() == 2 and not nodes.is_follower()
    alone.setenv(rank, "1")
    assert nodes.is_follower()


def test_what_no_launcher_says_is_refused(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("WORLD_SIZE", "many")
    with pytest.raises(RequestError, match="wanted a number in the environment variable WORLD_SIZE, found 'many'"):
        nodes.count_processes()


def test_what_is_shared(alone: pytest.MonkeyPatch) -> None:
    assert nodes.shared_training([replace(TWO, nodes=1)]) is None
    with pytest.raises(RequestError, match=r"wants 2 processes started together, found 1; .*torchrun --nnodes 2"):
        nodes.shared_training([TWO])
    alone.setenv("WORLD_SIZE", "2")
    assert nodes.shared_training([replace(TWO, nodes=1), TWO]) is TWO
    with pytest.raises(RequestError, match="same nodes and devices"):
        nodes.shared_training([TWO, replace(TWO, devices=2)])


@pytest.mark.slow
def test_two_nodes_train_as_two_devices_do(tmp_path: Path) -> None:
    """Two launchers, a store each, a network of one's own; the float network and the captured graph."""
    (tmp_path / "recipe.py").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    port = _free_port()
    started = [_start_node(tmp_path, number, port) for number in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert "trained along with the first process: 2 trainings" in said[1], said[1]
    report = _read_rows(tmp_path / "out0")
    assert not (tmp_path / "out1").exists(), "who trains along writes nothing"
    environment = os.environ | {"EDGEWISE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "edgewise", "run", "recipe.py:on_devices", "--out", "devices"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert report == _read_rows(tmp_path / "devices")


def _start_node(folder: Path, number: int, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += ["-m", "edgewise", "run", "recipe.py:on_nodes", "--out", f"out{number}"]
    environment = os.environ | {"EDGEWISE_STORE": str(folder / f"store{number}")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_rows(folder: Path) -> list[Any]:
    rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    return [(row["step"], row["precision"], row["accuracy"] and row["accuracy"]["top1"]) for row in rows]
