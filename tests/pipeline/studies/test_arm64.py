"""Files on an emulated Arm: what is compared, what is refused, and the program that runs inside."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from edgewise import calib_data, targets
from edgewise.measure.values import Accuracy, Difference
from edgewise.report.rows import Row
from edgewise.report.watch import Watch
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.studies.arm64 import check as checking
from edgewise.studies.arm64 import inside, root
from edgewise.studies.arm64.__main__ import main
from edgewise.studies.arm64.check import Answers, check_files, judge_loss
from edgewise.studies.arm64.root import EmulationError, Root
from edgewise.targets import MissingBackend
from edgewise.verify import card
from edgewise.verify.card import Card

QUIET = Watch(quiet=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of the digits, fitted by ridge regression, as an .onnx file beside its card."""
    data, linear = calib_data.load("digits"), nn.Linear(64, 10, bias=False)
    pixels = data.train.batch(torch.arange(len(data.train))).float().flatten(1) / 255
    wanted = torch.nn.functional.one_hot(data.train.labels, 10).float()
    linear.weight.data = torch.linalg.solve(pixels.T @ pixels + torch.eye(64), pixels.T @ wanted).T.contiguous()
    program = torch.export.export(nn.Sequential(nn.Flatten(), linear).eval(), (torch.zeros(1, 1, 8, 8),))
    path = tmp_path_factory.mktemp("arm") / "net.onnx"
    targets.get("onnx").export(program, path, targets.USUAL)
    row = Row(
        step="artifact", target="onnx", params=640, macs=640, bytes=1, accuracy=None, latency=None, verification="runtime",
        undelegated=(), verdict="pass", reason="", seconds=0.0, precision="float32",
    )  # fmt: skip
    kept = Card(
        target="onnx", sha256=file_digest(path), recipe="r", model="m", data_digest=data.digest, seed=0,
        input_shape=data.shape, mean=(0.0,), std=(1.0,), classes=data.classes, max_drop=0.01, row=row,
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    return path


class _Native(Root):
    """This machine in place of the emulated one, with whatever a test does to the answers."""

    def command(self, cpu: str, *arguments: str) -> list[str]:
        program, *rest = (str(self.path / argument[1:]) for argument in arguments)
        return [sys.executable, program, *rest]


def test_the_program_inside_answers_as_the_target_does(written: Path, tmp_path: Path) -> None:
    rows = check_files([written], "digits", 50, ["here"], _Native(tmp_path), QUIET)
    mine, theirs = rows
    assert (mine.emulated, theirs.emulated, theirs.machine) == (False, True, "aarch64 here")
    assert theirs.agreement.top1 == 1 and theirs.agreement.max_abs == 0 and theirs.agreement.n == 50
    assert theirs.accuracy.top1 == mine.accuracy.top1 and theirs.p50_ms > 0
    assert mine.verdict == "pass" and not list((tmp_path / "work").iterdir())


def test_an_arm_that_answers_otherwise_is_caught(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saturated(path: Path, images: torch.Tensor, *_: Any) -> Answers:
        return Answers(logits=torch.zeros(len(images), 10), ms=np.ones(len(images)))

    monkeypatch.setattr(checking, "_answer_there", saturated)
    _, theirs = check_files([written], "digits", 200, ["broken"], Root(tmp_path), QUIET)
    assert theirs.verdict == "fail" and theirs.agreement.top1 < 0.3
    assert theirs.accuracy.vs_baseline.delta < -0.1


def test_a_file_that_takes_bytes_is_fed_bytes(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def answered(path: Path, images: torch.Tensor, *_: Any) -> Answers:
        seen.append(images)
        return Answers(logits=torch.zeros(len(images), 10), ms=np.ones(len(images)))

    path = tmp_path / "net.onnx"
    shutil.copy2(written, path)
    card.path_of(path).write_text(
        json.dumps(encode(dataclasses.replace(card.read(written), fed="bytes"))), encoding="utf-8"
    )
    monkeypatch.setattr(checking, "_answer_here", answered)
    monkeypatch.setattr(checking, "_answer_there", answered)
    check_files([path], "digits", 3, ["a"], Root(tmp_path), QUIET)
    assert [(images.dtype, images.shape) for images in seen] == [(torch.uint8, (3, 8, 8, 1))] * 2


@pytest.mark.parametrize(
    ("delta", "low", "high", "verdict"),
    [
        (-0.03, -0.05, -0.015, "fail"),
        (-0.03, -0.05, 0.01, "not-checked"),
        (-0.005, -0.02, 0.01, "not-checked"),
        (0.0, -0.004, 0.01, "pass"),
    ],
)
def test_a_loss_between_machines_is_judged_by_what_the_card_allows(
    delta: float, low: float, high: float, verdict: str
) -> None:
    versus = Difference(delta=delta, ci95=(low, high), p_value=0.5)
    assert judge_loss(Accuracy(top1=0.9, n=500, ci95=(0.8, 0.95), vs_baseline=versus), 0.01).verdict == verdict


def test_a_program_that_fails_inside_is_told_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit('no such kernel')", encoding="utf-8")
    with pytest.raises(EmulationError, match="emulated cortex-a53, status 1: no such kernel"):
        list(root.run(_Native(tmp_path), "cortex-a53", "/fails.py"))


@pytest.mark.parametrize("change", ["content", "card", "data"])
def test_only_the_file_of_the_card_on_its_own_images_is_judged(
    written: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root, "check", lambda: None)
    monkeypatch.setattr(root, "build", lambda place, mirror, say: Root(tmp_path))
    path = tmp_path / "net.onnx"
    shutil.copy2(written, path)
    kept = json.loads(card.path_of(written).read_text(encoding="utf-8"))
    if change == "content":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "card":
        kept["target"] = "xnnpack"
    else:
        kept["data_digest"] = "0" * 64
    card.path_of(path).write_text(json.dumps(kept), encoding="utf-8")
    assert main([str(path), "--data", "digits", "--root", str(tmp_path)]) == 2
    wanted = {"content": "not the file its card describes", "card": "only onnx", "data": "verified on other images"}
    assert wanted[change] in capsys.readouterr().err


def test_without_the_tools_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root.shutil, "which", lambda tool: None if tool == "debootstrap" else f"/usr/bin/{tool}")
    with pytest.raises(
        MissingBackend, match=r"needs debootstrap, .*apt-get install --no-install-recommends debootstrap"
    ):
        root.check()


def test_without_the_rights_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(root.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(root.os, "geteuid", lambda: 1000)
    assert main(["net.onnx", "--data", "digits"]) == 3
    assert "rights of root" in capsys.readouterr().err


def test_a_system_is_made_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def debian(folder: Path, mirror: str) -> None:
        (folder / "usr/bin").mkdir(parents=True)
        made.append(mirror)

    def broken(folder: Path, wanted: dict[str, str]) -> None:
        raise EmulationError("no network")

    monkeypatch.setattr(root, "_install_debian", debian)
    monkeypatch.setattr(root, "_install_wheels", broken)
    with pytest.raises(EmulationError, match="no network"):
        root.build(tmp_path, "mirror", lambda text: None)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    emulator = tmp_path / "qemu"
    emulator.touch()
    monkeypatch.setattr(root, "_install_wheels", lambda folder, wanted: None)
    monkeypatch.setattr(root.shutil, "which", lambda tool: str(emulator))
    first = root.build(tmp_path, "mirror", lambda text: None)
    assert root.build(tmp_path, "mirror", lambda text: None) == first and len(made) == 2
    assert np.__version__ in first.path.name


def test_the_program_inside_imports_nothing_of_the_project() -> None:
    imported = [
        line.split()[1] for line in Path(inside.__file__).read_text().splitlines() if line.strip().startswith("import ")
    ]
    assert sorted(imported) == ["numpy", "onnxruntime", "platform", "sys", "time"]
