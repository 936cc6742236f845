"""Golden answers must come again exactly only where they were given: architecture, processor, build, no emulator."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgewise.store import machine
from edgewise.verify import golden
from edgewise.verify.golden import Golden, Record, Tolerance

BUILD = "onnxruntime 1.32.0"
HERE = Record(
    sha256="", count=2, index=(0, 1), cpu="Some CPU", tolerance=Tolerance(worst=0.5, mean=0.5), architecture="x86_64",
    runtime=BUILD,
)  # fmt: skip
GIVEN = Golden(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "cpu_name", lambda: "Some CPU")
    monkeypatch.setattr(golden, "emulator_name", lambda: "")
    monkeypatch.setattr(golden, "platform", SimpleNamespace(machine=lambda: "x86_64"))


def moved_by(step: float, record: Record, runtime: str = BUILD) -> str:
    return golden.describe_change(GIVEN.answers + torch.tensor([[0.0, step], [0.0, 0.0]]), GIVEN, record, runtime)


def test_one_rounding_step_is_too_much_in_the_same_place() -> None:
    assert moved_by(0.0, HERE) == ""
    assert "allowed in the same build on the same processor" in moved_by(0.1, HERE)


@pytest.mark.parametrize(
    "record",
    [
        dataclasses.replace(HERE, cpu="Another"),
        dataclasses.replace(HERE, architecture="aarch64"),
        dataclasses.replace(HERE, runtime="onnxruntime 1.31.0"),
        dataclasses.replace(HERE, emulator="qemu"),
    ],
)
def test_elsewhere_a_rounding_step_is_allowed_and_more_is_not(record: Record) -> None:
    assert moved_by(0.1, record) == ""
    assert "allowed in another build or on another processor" in moved_by(0.6, record)


def test_under_an_emulator_the_processors_name_is_the_hosts_and_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "emulator_name", lambda: "qemu-user")
    assert moved_by(0.1, HERE) == ""


def test_a_card_of_before_the_place_was_kept_goes_by_the_processor() -> None:
    assert "same processor" in moved_by(0.1, dataclasses.replace(HERE, architecture="", runtime=""))


def test_an_emulator_is_named_or_given_away_by_the_hosts_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"/proc/cpuinfo": "vendor_id\t: GenuineIntel\n"}
    monkeypatch.delenv("EDGEWISE_EMULATED", raising=False)
    monkeypatch.setattr(machine, "_read_text", lambda path: info.get(path, ""))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert machine.emulator_name() == ""
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.emulator_name() == "an emulator that it does not name"
    monkeypatch.setenv("EDGEWISE_EMULATED", "qemu-user cortex-a76")
    assert machine.emulator_name() == "qemu-user cortex-a76"


@pytest.mark.parametrize(
    ("needs", "npm", "package"),
    [
        (("onnx", "onnxruntime"), (), "onnxruntime"),
        (("vela",), (), ""),
        (("onnx", "onnxruntime"), ("some-runtime",), "npm:some-runtime"),
    ],
)
def test_the_build_is_the_package_that_runs_the_file(
    needs: tuple[str, ...], npm: tuple[str, ...], package: str
) -> None:
    target: Any = SimpleNamespace(needs=needs, npm=npm)
    assert golden.runtime_of(target).partition(" ")[0] == package


@pytest.mark.parametrize(
    ("answers", "reference", "comparable"),
    [
        ([[0.0, 1.0]], [[0.5, 1.0]], True),
        ([[0.0, float("inf")]], [[0.5, 1.0]], False),
        ([[0.0, 1.0]], [[0.5, float("nan")]], False),
        # Finite each, and yet their distance, or their spread, is none that a float32 holds.
        ([[3e38, 0.0]], [[-3e38, 0.0]], False),
        ([[3e38, -3e38]], [[3e38, -3e38]], False),
        ([[1e38, 0.0]], [[-1e38, 0.0]], True),
    ],
)
def test_answers_of_a_network_that_diverged_are_no_golden_ones(
    answers: list[list[float]], reference: list[list[float]], comparable: bool
) -> None:
    own, theirs = torch.tensor(answers), torch.tensor(reference)
    assert golden.can_compare(own, theirs) is comparable
    allowed = golden.tolerance(own, theirs)
    assert not comparable or math.isfinite(allowed.worst + allowed.mean)
