"""The curve of several budgets: what a point is, and what is written about it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import RequestError
from edgewise.measure.values import Accuracy, Difference, Latency
from edgewise.report.document import Report
from edgewise.report.rows import Row
from edgewise.stages.prune.sparsify import Sparsify
from edgewise.studies import pruning_curve


def row(step: str, top1: float, macs: int, ratio: float, **fields: object) -> Row:
    versus = Difference(delta=top1 - 0.9, ci95=(top1 - 0.91, top1 - 0.89), p_value=0.5)
    return Row(
        step=step, target="onnx" if step == "artifact" else None, params=macs // 10, macs=macs, bytes=macs,
        accuracy=Accuracy(top1=top1, n=1000, ci95=(top1 - 0.01, top1 + 0.01), vs_baseline=versus),
        latency=Latency(
            on="onnx", batch=1, threads=1, p50_ms=ratio, p90_ms=ratio, ratio_to_baseline=ratio, ci95=(ratio, ratio)
        ),
        verification="runtime" if step == "artifact" else None, undelegated=(), verdict="pass", reason="", seconds=1.0,
        **fields,
    )  # fmt: skip


def report(top1: float, macs: int, ratio: float) -> Report:
    told = {"budget": "milliseconds", "wanted": 0.5, "predicted": 0.48, "measured": 0.49}
    pruned = row("prune", 0.3, macs, ratio, facts={"budget": told})
    rows = [row("baseline", 0.9, 1000, 1.0), pruned, row("fold", top1, macs, ratio), row("artifact", top1, macs, ratio)]
    return Report(recipe={"model": "resnet56"}, environment={"cpu": "x"}, rows=rows)


def test_a_point_is_fields_of_the_stage() -> None:
    assert pruning_curve.parse("macs=1/4") == {"macs": 0.25}
    assert pruning_curve.parse("latency=0.5,scope=layer,round_to=4") == {
        "latency": 0.5,
        "scope": "layer",
        "round_to": 4,
    }
    for text, message in (
        ("mac=0.5", "FIELD=VALUE"),
        ("macs", "FIELD=VALUE"),
        ("macs=2", "must lie in 0 … 1, 0 and 1 excluded"),
    ):
        with pytest.raises(RequestError, match=message):
            pruning_curve.parse(text)


def test_every_point_gets_the_same_training() -> None:
    options = pruning_curve._parser().parse_args(
        ["--epochs", "3", "--lr", "0.02", "--sparse-epochs", "2", "--weights", "w"]
    )
    first, second = (pruning_curve.recipe_of(options, point) for point in ("macs=1/2", "latency=1/2"))
    assert first.stages[2] == second.stages[2] and first.stages[0] == second.stages[0]
    assert isinstance(first.stages[0], Sparsify) and first.stages[0].training.epochs == 2
    assert (first.stages[1].macs, second.stages[1].latency) == (0.5, 0.5)
    assert first.stages[1].reconstruct == second.stages[1].reconstruct == 1024
    assert pruning_curve.recipe_of(options, "macs=1/2,reconstruct=0").stages[1].reconstruct == 0
    assert pruning_curve._setting_words(options) == (
        "Each point: layers fitted anew on 1,024 images, 3 epochs at 0.02, distillation 0.9, after 2 epochs of sparse learning."
    )
    more = pruning_curve._parser().parse_args(
        ["--epochs", "3", "--recover-steps", "20", "--views", "4", "--mirrored-teacher"]
    )
    pruning, tuning, _ = pruning_curve.recipe_of(more, "macs=1/2").stages
    assert (pruning.recover_steps, tuning.training.views, tuning.training.mirrored_teacher) == (20, 4, True)
    assert not pruning_curve.recipe_of(options, "macs=1/2").stages[2].training.mirrored_teacher
    assert (
        "20 steps of block-wise distillation, 3 epochs at 0.05, distillation 0.9 about 4 views of an image and its mirror images"
        in pruning_curve._setting_words(more)
    )
    assert all(pruning_curve.parse(point) for point in pruning_curve.DEFAULT_POINTS)
    assert first.name != second.name and first.weights == "w" and first.targets == ("onnx",)


def test_the_curve_is_written_three_ways_with_what_was_published(tmp_path: Path) -> None:
    reports = {"macs=1/2": report(0.91, 500, 0.6), "latency=1/2": report(0.88, 400, 0.5)}
    points = [pruning_curve.outcome(asked, found) for asked, found in reports.items()]
    right = [np.arange(1000) < 910, np.arange(1000) < 880]
    pruning_curve.write(tmp_path, "resnet56", reports, pruning_curve.compare_points(points, right), "One epoch.")
    document = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert [point["macs_ratio"] for point in document["points"]] == [0.5, 0.4]
    assert document["points"][0]["to_first"] is None
    assert document["points"][1]["to_first"]["delta"] == pytest.approx(-0.03)
    text = (tmp_path / "curve.md").read_text(encoding="utf-8")
    assert "| macs=1/2 | 91.00 | +1.00 (+0.00 to +2.00) | 0.0M | 2.00x | 0.600 | 30.00 |" in text
    assert "0.5 / 0.48 / 0.49 milliseconds" in text
    assert "93.53 to 93.64 % at 2.57x" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Accuracy against work" in page and "DepGraph, published" in page
    assert "1 check passed, 2 not checked" in page, "a curve holds nothing to a limit"


def test_other_networks_are_not_held_against_it(tmp_path: Path) -> None:
    assert "DepGraph" not in pruning_curve.markdown("vgg16_bn_cifar", row("baseline", 0.9, 1000, 1.0), [], "")


def test_the_command_tells_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pruning_curve._parser().parse_args(["--help"])
    assert "macs=1/2.57" in capsys.readouterr().out
    assert isinstance(pruning_curve._parser().parse_args([]), argparse.Namespace)
