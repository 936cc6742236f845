"""The session that takes every architecture to every target: its figures, its order, its memory, its limits."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import models, targets
from edgewise.measure.cost import totals
from edgewise.models._published import PUBLISHED
from edgewise.store import sources
from edgewise.studies.architectures import __main__ as command
from edgewise.studies.architectures import cells, keys, table
from edgewise.studies.architectures.adopt import adopt_results
from edgewise.studies.architectures.cells import Cell
from edgewise.studies.architectures.keys import cell_key
from edgewise.studies.architectures.network import (
    Agreement,
    Prepared,
    calibrate_network,
    compare_logits,
    float_islands,
    network_costs,
    prepare_network,
)
from edgewise.studies.architectures.photographs import photograph_crops
from edgewise.studies.architectures.results import Results
from edgewise.studies.architectures.supervise import Worker

ROOT = Path(models.__file__).parents[1]


# --- figures ---


def counted() -> list[object]:
    """Every architecture whose MACs were published; those that take long to build or to run are slow."""
    found = {name: published for name, published in PUBLISHED.items() if published.macs is not None}
    quick = [name for name, p in found.items() if p.params < 15e6 and (p.macs or 0) < 1e9]
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in found]


@pytest.mark.parametrize("name", counted())
def test_multiply_accumulates_are_the_published_ones(name: str) -> None:
    """Counted on the network itself, to the last published digit."""
    published, spec = PUBLISHED[name], models.get(name)
    assert published.macs is not None
    shape = spec.input_shape if published.side is None else (spec.input_shape[0], published.side, published.side)
    assert abs(totals.count_costs(spec.build(), shape).macs - published.macs) <= published.unit / 2


def test_agreement_by_hand() -> None:
    """Centred, the wanted rows are (1, -1) twice, of norm 2; the difference is (0, 0) and (-2, 2), of norm sqrt 8."""
    wanted = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    found = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert compare_logits(found, wanted) == Agreement(pytest.approx(math.sqrt(8) / 2), 1, 2)
    assert compare_logits(found[:1], wanted) == Agreement(0.0, 1, 1)


class Net(nn.Module):
    """A convolution with a ReLU, and whatever comes between it and the classifier."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.between = between
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.between(F.relu(self.conv(x))).mean((2, 3), keepdim=True).flatten(1))
        return logits


def quantized(between: Callable[[Tensor], Tensor]) -> Any:
    from edgewise.targets._int8 import Int8Quantizer

    spec = models.Spec(name="net", build=nn.Identity, input_shape=(3, 8, 8), num_classes=10, classifier="fc")
    data = photograph_crops((3, 8, 8), 10, 4)
    from edgewise.stage import Context

    ctx = Context(spec=spec, data=data, scratch=Path("unused"))
    return calibrate_network(Prepared(spec=spec, model=Net(between).eval(), context=ctx), Int8Quantizer(targets.Grid()))


@pytest.mark.parametrize(
    ("between", "islands"),
    [
        (lambda x: x, {}),
        (lambda x: x + x, {}),
        (lambda x: F.dropout(x, 0.5, False), {}),
        (lambda x: F.elu(x), {"elu": 1, "mean": 1}),  # elu gives floats to the mean, which is then not int8 either
        (lambda x: F.relu(F.elu(x)), {"elu": 1, "relu": 1, "mean": 1}),
    ],
)
def test_float_islands_by_hand(between: Callable[[Tensor], Tensor], islands: dict[str, int]) -> None:
    assert dict(float_islands(quantized(between))) == islands


def test_photographs_are_photographs() -> None:
    data = photograph_crops((3, 32, 24), 10, 4)
    images = data.test.batch(torch.arange(4))
    assert images.shape == (4, 3, 32, 24) and images.dtype == torch.uint8
    assert images.float().std() > 20 and not torch.equal(images, data.calib.batch(torch.arange(4)))
    neighbours = (images[..., 1:].float() - images[..., :-1].float()).abs().mean()
    assert neighbours < images.float().std() / 2, "neighbouring pixels of a photograph resemble each other"
    assert photograph_crops((1, 8, 8), 10).train.batch(torch.tensor([0])).shape == (1, 1, 8, 8)


def test_prepared_weights_keep_activations_alive() -> None:
    prepared = prepare_network(models.get("convnext_tiny"), small=True, images=4)
    scales = [p for name, p in prepared.model.named_parameters() if name.endswith("layer_scale")]
    assert scales and all(bool((p == 1).all()) for p in scales)
    norms = [
        m
        for m in prepare_network(models.get("resnet18"), small=True, images=4).model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert all(float(norm.running_var.max()) != 1 for norm in norms if norm.running_var is not None)


def test_side_classifiers_are_not_deployed() -> None:
    found = network_costs(models.get("googlenet"))
    assert (found["params"], found["deployed"]) == (13_004_888, 6_624_904)


# --- plan and keys ---


def test_small_architectures_first_and_float_onnx_before_what_is_timed_against_it() -> None:
    found = cells.plan(["vgg19", "resnet18", "lenet5"], ["coreml", "onnx"], ["float", "int8"])
    assert [str(cell) for cell in found[:4]] == [
        "lenet5 onnx float", "lenet5 coreml float", "lenet5 coreml int8", "lenet5 onnx int8",
    ]  # fmt: skip
    assert [cell.model for cell in found] == [name for name in ("lenet5", "resnet18", "vgg19") for _ in range(4)]


CHANGES = [
    pytest.param("_int8", [False, True], id="the quantizer changes int8 files only"),
    pytest.param("xnnpack", [True, True], id="the target's own file changes all"),
    pytest.param("_xnnpack_inside", [False, False], id="looking inside changes none"),
    pytest.param("onnx", [False, False], id="nor does another target"),
]


@pytest.mark.parametrize(("source", "changes"), CHANGES)
def test_a_changed_source_changes_the_keys_of_what_depends_on_it(
    source: str, changes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Cell(model="lenet5", target="xnnpack", precision=precision) for precision in cells.PRECISIONS]
    before = [cell_key(cell) for cell in pairs]
    real = Path.read_text

    def changed(self: Path, *args: Any, **kwargs: Any) -> str:
        text = real(self, *args, **kwargs)
        return f"{text}\n# changed\n" if source in (self.stem, *self.parts) else text

    monkeypatch.setattr(Path, "read_text", changed)
    for cached in (keys._target_digests, sources._read_source):
        cached.cache_clear()
    after = [cell_key(cell) for cell in pairs]
    for cached in (keys._target_digests, sources._read_source):
        cached.cache_clear()
    assert [new != old for new, old in zip(after, before, strict=True)] == changes


def test_only_what_is_missing_changed_or_failed_is_measured(tmp_path: Path) -> None:
    results = Results(tmp_path)
    good, failed, stale, missing = (
        Cell(model="lenet5", target=target, precision=precision)
        for target in ("onnx", "xnnpack")
        for precision in cells.PRECISIONS
    )
    results.keep(good, {"key": cell_key(good)})
    results.keep(failed, {"key": cell_key(failed), "failed": "why"})
    results.keep(stale, {"key": "another"})
    assert list(results.pending([good, failed, stale, missing], again=False)) == [stale, missing]
    assert list(results.pending([good, failed, stale, missing], again=True)) == [failed, stale, missing]


# --- the worker's limits ---


def test_a_call_that_hangs_is_ended_and_the_next_one_works() -> None:
    with Worker(seconds=3, memory=10**11) as worker:
        started = time.monotonic()
        assert worker.do(time.sleep, 600)["failed"].startswith("ended after 3 s")
        assert time.monotonic() - started < 60


def test_a_call_that_holds_too_much_memory_is_ended() -> None:
    with Worker(seconds=600, memory=1) as worker:
        assert "more than 0 GB of memory" in worker.do(time.sleep, 600)["failed"]


def test_a_process_that_dies_is_a_failure_of_its_call_alone() -> None:
    with Worker(seconds=60, memory=10**11) as worker:
        assert worker.do(os._exit, 1) == {"failed": "the process died: out of memory, or a crash of the backend"}
        assert worker.do(dict, [("fine", 1)]) == {"fine": 1}


# --- the whole command, and its table ---


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journey")
    arguments = ["lenet5", "--target", "onnx", "--out", str(folder), "--docs", str(folder / "docs")]
    assert command.main(arguments) == 0
    return folder


def test_the_session_measures_and_writes_the_table(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((session / "docs" / "architectures.json").read_text(encoding="utf-8"))
    floating, int8 = document["files"]
    sizes = {entry["model"]: entry for entry in document["models"]}
    assert (sizes["lenet5"]["params"], sizes["lenet5"]["macs"]) == (61_706, 416_520)
    assert sizes["vgg19"]["published"]["macs"] == 19.632e9 and "macs" not in sizes["vgg19"]
    assert floating["agreement"]["error"] < 1e-5 and floating["latency"]["ratio"] == 1
    assert int8["agreement"]["error"] < 0.1 and int8["drift"]["error"] > 0
    assert int8["grade"] == "runtime" and int8["bytes"] < floating["bytes"] / 2
    text = (session / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert "| lenet5 | 1×28×28 | 61,706 | 61,706 | 416.5 k | – | – |" in text
    assert f"{int8['latency']['ratio']:.2f}×" in text
    assert "\n| vgg19 |" in text, "published figures are listed before anything was run"
    assert "47 other architectures: not run." in text
    assert not list((session / "scratch").glob("*"))


def test_the_session_goes_on_where_it_was(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (session / "cells").iterdir()}
    arguments = ["lenet5", "--target", "onnx", "--out", str(session), "--docs", str(session / "docs")]
    assert command.main(arguments) == 0
    assert "2 of 2 files measured before, 0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (session / "cells").iterdir()} == before


def test_a_failure_stands_in_the_table_and_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Worker, "do", lambda self, *arguments: {"failed": "TargetError: a | b"})
    arguments = ["lenet5", "--target", "onnx", "--out", str(tmp_path), "--docs", str(tmp_path)]
    assert command.main(arguments) == 1
    assert "lenet5 onnx float: failed: TargetError" in capsys.readouterr().err
    text = (tmp_path / "architectures.md").read_text(encoding="utf-8")
    assert "| lenet5 | failed: TargetError: a \\| b |" in text


def test_a_fresh_clone_goes_on_from_the_written_table(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(session / "docs", docs)
    arguments = ["lenet5", "--target", "onnx", "--out", str(tmp_path / "out"), "--docs", str(docs)]
    assert command.main(arguments) == 0
    told = capsys.readouterr().err
    assert "2 results taken over" in told and "2 of 2 files measured before, 0 to do" in told
    for name in ("architectures.md", "architectures.json"):
        assert (docs / name).read_bytes() == (session / "docs" / name).read_bytes(), "nothing is lost on the way"


def test_a_result_at_hand_and_an_unknown_architecture_are_left_alone(session: Path, tmp_path: Path) -> None:
    document = json.loads((session / "docs" / "architectures.json").read_text(encoding="utf-8"))
    document["files"][0]["bytes"] = 1
    document["files"].append({**document["files"][1], "model": "forgotten"})
    written = tmp_path / "architectures.json"
    written.write_text(json.dumps(document), encoding="utf-8")
    results = Results(tmp_path / "cells")
    floating = Cell(model="lenet5", target="onnx", precision="float")
    results.keep(floating, {"key": "mine"})
    assert adopt_results(written, results) == 1
    assert results.read(floating) == {"key": "mine"}
    assert adopt_results(tmp_path / "missing.json", results) == 0


def test_results_of_older_code_are_marked(session: Path, tmp_path: Path) -> None:
    results, cell = Results(tmp_path), Cell(model="lenet5", target="onnx", precision="float")
    kept = Results(session / "cells").read(cell)
    assert kept is not None
    results.keep(cell, {**kept, "key": "older"})
    table.write(results, tmp_path)
    row = next(line for line in (tmp_path / "architectures.md").read_text("utf-8").splitlines() if "8/8" in line)
    assert "†" in row


def test_wrong_requests_name_the_choices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["lenet", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'lenet5'" in capsys.readouterr().err
    assert command.main(["lenet5", "--target", "onn", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'onnx'" in capsys.readouterr().err
