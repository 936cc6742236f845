"""The reference evaluation held against PyTorch: what counts as a tie, what as a fault, and that the command says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise import calib_data, models, targets
from edgewise.calib_data import Data, Part
from edgewise.measure import agreement
from edgewise.measure import answers as evaluator
from edgewise.measure.agreement import NOISE_STEPS
from edgewise.measure.values import Agreement
from edgewise.studies import reference_evaluation
from edgewise.studies.architectures import __main__ as journey
from edgewise.studies.architectures.network import calibrate_network, capture_network, prepare_network
from edgewise.studies.reference_evaluation import Found, main
from edgewise.targets import Inside
from edgewise.targets.coreml._mil import Everything, Reference

pytest.importorskip("coremltools")


def found(noise: float, differ: int, unrounded: int | None = None, apart: int | None = None) -> Found:
    """An int8 file's answers to 540 images, three of them ties; ``noise`` in steps, of which two are explained."""
    seen = Agreement(
        top1=1 - (3 + differ) / 540, max_abs=0.1, n=540, ties=3, differ=differ, noise=noise, noise_unit="steps",
        noise_allowed=NOISE_STEPS, layers_apart=apart,
    )  # fmt: skip
    exact = None if unrounded is None else replace(seen, differ=unrounded, layers_apart=None)
    return Found("net", "coreml", "int8", seen, 0.9, 1.0, exact)


@pytest.mark.parametrize(("noise", "differ", "agrees"), [(1.9, 0, True), (1.9, 1, False), (2.1, 0, False)])
def test_agreement_wants_both(noise: float, differ: int, agrees: bool) -> None:
    assert found(noise, differ).agrees is agrees
    assert found(noise, differ, apart=0).agrees is agrees, "layers are another verdict"


@pytest.mark.parametrize(
    ("noise", "unrounded", "by_rounding"), [(1.9, 0, True), (1.9, 1, False), (1.9, None, False), (2.1, 0, False)]
)
def test_float16_alone_is_told_apart_from_a_fault(noise: float, unrounded: int | None, by_rounding: bool) -> None:
    seen = found(noise, 2, unrounded)
    assert seen.by_rounding is by_rounding and not seen.agrees


@pytest.mark.parametrize(
    ("noise", "apart", "by_layers"), [(1.9, 0, True), (1.9, 1, False), (1.9, None, False), (2.1, 0, False)]
)
def test_roundings_that_add_up_are_told_apart_from_a_fault(noise: float, apart: int | None, by_layers: bool) -> None:
    seen = found(noise, 2, 1, apart)
    assert seen.by_layers is by_layers and not seen.agrees and not seen.by_rounding


def test_a_layer_that_computes_something_else_is_counted(tmp_path: Path) -> None:
    prepared, target = prepare_network(models.get("tiny_resnet"), small=True, images=4), targets.get("coreml")
    graph = calibrate_network(prepared, target.quantizer(target.grids[0]))
    program = capture_network(graph, prepared.shape)
    path = tmp_path / "net.mlpackage"
    target.export(program, path, targets.USUAL)
    images = torch.cat(prepared.images[:2])
    assert reference_evaluation.layers_apart(target, path, program, images, "int8") == 0
    weights = {name: value for name, value in graph.state_dict().items() if value.dtype == torch.int8}
    with torch.no_grad():
        next(iter(weights.values())).neg_()
    other = capture_network(graph, prepared.shape)
    assert reference_evaluation.layers_apart(target, path, other, images, "int8") == 1, (
        "the first convolution and no later one"
    )
    assert reference_evaluation.layers_apart(replace(target, inside=None), path, other, images, "int8") is None
    empty = replace(target, inside=lambda path, program, images: Inside(program=program, values={}))
    assert reference_evaluation.layers_apart(empty, path, other, images, "int8") is None, (
        "nothing compared is no agreement"
    )


def disturb(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[object], bool]) -> None:
    """Turn over the first image's answers of the networks that are chosen."""

    def disturbed(network: object, part: Part, *rest: Any, **named: Any) -> torch.Tensor:
        answers = original(network, part, *rest, **named)  # type: ignore[arg-type]
        return torch.cat([-answers[:1], answers[1:]]) if chosen(network) else answers

    original = evaluator.compute_logits
    monkeypatch.setattr(reference_evaluation, "compute_logits", disturbed)
    # One image of 540 turned over is a noise of 2 / sqrt 540 of the logits' deviation, and some steps of a grid.
    monkeypatch.setattr(agreement, "NOISE_SHARES", {"float16": 0.2, "int8": 0.2})
    monkeypatch.setattr(agreement, "NOISE_STEPS", 20.0)


def test_only_roundings_that_add_up_pass_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluations, rounded and not, are disturbed in one image; what the file's layers compute is not."""
    disturb(monkeypatch, lambda network: isinstance(network, Reference))
    assert main(["tiny_resnet", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "coreml-digits.json").read_text(encoding="utf-8"))["tiny_resnet"]
    assert [(row["differ"], row["unrounded"], row["layers_apart"]) for row in rows] == [(1, 1, 0)] * 2
    assert "| layer by layer |" in (tmp_path / "coreml-digits.md").read_text(encoding="utf-8")
    assert "agrees layer by layer, 539 of 540" in capsys.readouterr().err
    monkeypatch.setattr(reference_evaluation, "_LOOKED_INTO", 0)
    assert main(["tiny_resnet", "--again", "--out", str(tmp_path)]) == 1, "more images than are looked into"
    monkeypatch.setattr(reference_evaluation, "_LOOKED_INTO", 1)
    monkeypatch.setattr(reference_evaluation, "layers_apart", lambda *_: 1)
    assert main(["tiny_resnet", "--again", "--out", str(tmp_path)]) == 1


def test_a_difference_of_float16_alone_is_named_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rounded evaluation is disturbed, PyTorch's and the unrounded one are left alone."""
    disturb(monkeypatch, lambda found: isinstance(found, Reference) and not isinstance(found._unrounded, Everything))
    assert main(["tiny_resnet", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "coreml-digits.json").read_text(encoding="utf-8"))["tiny_resnet"]
    assert [(row["differ"], row["unrounded"]) for row in rows] == [(1, 0)] * 2
    assert not any(row["agrees"] for row in rows)
    assert "| but for float16 |" in (tmp_path / "coreml-digits.md").read_text(encoding="utf-8")
    assert "agrees but for float16, 539 of 540" in capsys.readouterr().err


def test_every_image_is_compared_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny_resnet", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "coreml-digits.json").read_text(encoding="utf-8"))["tiny_resnet"]
    assert [row["precision"] for row in rows] == ["float", "int8"]
    assert all(row["images"] == 540 and row["agrees"] and row["accuracy"] > 0.9 for row in rows)
    assert rows[0]["noise"] > 0 and rows[0]["noise_unit"] == "share", "float16 rounds"
    assert rows[1]["noise"] < 0.1, "constants that float16 holds: the file computes the graph's own integers"
    assert f"| tiny_resnet | int8 | 540 | {rows[1]['accuracy']:.1%} |" in (tmp_path / "coreml-digits.md").read_text(
        encoding="utf-8"
    )
    capsys.readouterr()
    assert main(["tiny_resnet", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "coreml-digits.json").read_text(encoding="utf-8"))["tiny_resnet"]
    assert again == rows, "measured once"
    told = f"top-1 {rows[1]['accuracy']:.1%}, {rows[1]['seconds']:.0f} s"
    assert told in capsys.readouterr().err, "measured before, told again"


def test_a_file_that_answers_otherwise_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: object, part: Part, *__: object, **___: object) -> torch.Tensor:
        drawn.append(torch.randn(len(part), 10, generator=torch.Generator().manual_seed(len(drawn))))
        return drawn[-1]

    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(reference_evaluation, "compute_logits", wrong)
    monkeypatch.setattr(reference_evaluation, "_TRAINING", replace(reference_evaluation._TRAINING, epochs=1, steps=1))
    monkeypatch.setattr(reference_evaluation, "_ROUNDS", 1)
    assert main(["lenet5", "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "coreml-digits.json").read_text(encoding="utf-8"))["lenet5"]
    assert all(row["differ"] > 300 and not row["agrees"] for row in rows)
    assert "**no**" in (tmp_path / "coreml-digits.md").read_text(encoding="utf-8")


def test_a_backend_that_breaks_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, data: Data, *_: object) -> list[Found]:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(reference_evaluation, "examine_files", broken)
    assert main(["resnet20", "--out", str(tmp_path)]) == 1
    assert "failed: RuntimeError: no resnet20" in (tmp_path / "coreml-digits.md").read_text(encoding="utf-8")


def test_the_table_is_named_by_the_data_set_and_not_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(calib_data.load("digits"), name="cifar10:/some/where")
    monkeypatch.setattr(calib_data, "load", lambda name: there)
    monkeypatch.setattr(reference_evaluation, "examine_files", lambda *_: [])
    assert main(["tiny_resnet", "--data", "cifar10:/some/where", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coreml-cifar10.json", "coreml-cifar10.md"]
    text = (tmp_path / "coreml-cifar10.md").read_text(encoding="utf-8")
    assert "against PyTorch, cifar10\n" in text and "where/" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resnet21"], "resnet21"),
        (["--target", "onnx"], "onnx has no reference"),
        (["--data", "digit"], "unknown data set"),
    ],
)
def test_a_wrong_request_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_missing_backend_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise targets.MissingBackend(f"{name}: pip install edgewise[{name}]")

    monkeypatch.setattr(targets, "get", missing)
    for command in (main, journey.main):
        assert command(["--target", "coreml"]) == 3
        assert "edgewise[coreml]" in capsys.readouterr().err


@pytest.mark.parametrize(("learnt", "rounds"), [(0.0, 1), (1.1, 2)])
def test_training_ends_once_it_is_learnt(
    learnt: float, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_evaluation, "_TRAINING", replace(reference_evaluation._TRAINING, epochs=1, steps=1))
    monkeypatch.setattr(reference_evaluation, "_ROUNDS", 2)
    monkeypatch.setattr(reference_evaluation, "_LEARNT", learnt)
    network, _ = reference_evaluation._train_network(models.get("tiny_resnet"), calib_data.load("digits"), tmp_path)
    assert len(list(tmp_path.iterdir())) == rounds and not network.training
