"""What to do next: the file that came closest, and changes computed from what was measured."""

from __future__ import annotations

import html
import io
from dataclasses import replace
from typing import Any

import pytest

from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report.advice import advise_on_run, images_needed
from edgewise.report.document import Report
from edgewise.report.rows import ArtifactFile, Row
from edgewise.verify.gates import Limits, on_accuracy

LIMITS = {"max_drop": 0.01, "max_latency_ratio": 1.0, "min_agreement": 0.99}


def accuracy(delta: float, low: float, n: int = 400) -> Accuracy:
    lost = 5 - round(delta * n)
    change = Difference(delta=delta, ci95=(low, delta + (delta - low)), p_value=0.5, gained=5, lost=lost)
    return Accuracy(top1=0.9 + delta, n=n, ci95=(0.8, 1.0), vs_baseline=change)


def row(step: str, delta: float = 0.0, low: float | None = None, **changes: Any) -> Row:
    plain = Row(
        step=step, target=None, params=1, macs=1000, bytes=1, latency=None, verification=None,
        accuracy=accuracy(delta, delta - 0.005 if low is None else low), undelegated=(), verdict="pass", reason="why", seconds=1.0,
    )  # fmt: skip
    return replace(plain, **changes)


def file(precision: Any, delta: float = 0.0, low: float | None = None, ratio: float = 0.5, **changes: Any) -> Row:
    timed = Latency(
        on="onnx", batch=1, threads=1, p50_ms=1, p90_ms=1, ratio_to_baseline=ratio, ci95=(ratio - 0.05, ratio + 0.05)
    )
    plain: dict[str, Any] = {"target": "onnx", "precision": precision, "latency": timed, "verdict": "fail"}
    return row("artifact", delta, low, **plain | changes)


def told(*rows: Row, **recipe: Any) -> tuple[str, tuple[str, ...]]:
    files = [ArtifactFile(target="onnx", path=f"artifacts/{r.precision}", sha256="", bytes=1) for r in rows if r.target]
    found = advise_on_run({"limits": LIMITS} | recipe, rows, files, "runs/x")
    assert found is not None
    return found.closest, found.changes


def test_a_run_whose_targets_all_have_a_file_needs_no_advice(passing: Report) -> None:
    assert advise_on_run(passing.recipe, passing.rows, passing.artifacts) is None
    assert advise_on_run({}, [row("baseline")], []) is None and advise_on_run({}, [], []) is None


def test_the_images_needed_are_those_that_the_gate_tells() -> None:
    undecided = file("int8", -0.005, -0.025)
    assert undecided.accuracy is not None
    told = on_accuracy(undecided.accuracy, Limits(max_drop=0.01))
    needed = images_needed(undecided, 0.01)
    assert needed is not None and told.reason.endswith(f"; {needed:,} would decide")
    assert images_needed(file("int8", -0.02, -0.03), 0.01) is None, "more images would only prove the loss"


def test_the_allowed_time_is_the_one_that_the_gate_allows() -> None:
    """A file of the baseline's own work and precision may take as long as ``same_work_ratio`` says."""
    same = file("float32", ratio=1.02, verdict="not-checked", reason="1.02 of the baseline's time on onnx")
    same = replace(same, latency=replace(same.latency, ci95=(1.0, 1.03)))
    first = row("baseline", precision="float32")
    limits = LIMITS | {"same_work_ratio": 1.05}
    assert (
        "takes 1.02× the baseline's time on onnx where 1.05× may be, on a machine too busy"
        in told(first, same, limits=limits)[0]
    )
    assert "where 1× may be" in told(first, replace(same, macs=900), limits=limits)[0]


def test_the_undecided_file_comes_before_the_failed_one_with_its_name_path_and_gate() -> None:
    closest, changes = told(row("baseline"), file("float32", -0.3), file("int8", -0.005, -0.025, verdict="not-checked"))
    assert closest.startswith("Closest to passing is onnx int8 (runs/x/artifacts/int8), undecided: it lost 0.50 points")
    assert "cannot exclude a fall of 2.50 points" in closest
    assert changes[0].startswith("More test images: about 4,832 would decide it")


def test_of_failed_files_the_one_nearest_to_its_limit_is_named() -> None:
    closest, _ = told(row("baseline"), file("float32", -0.3), file("int8", -0.02))
    assert "onnx int8" in closest and "it lost 2.00 points of top-1 where 1.00 points may go" in closest


def test_the_costliest_step_is_named_first_with_a_linear_guess() -> None:
    scan = {
        "channel_sensitivity": {name: {"0.5": {"top1": top1, "loss": 1.0}} for name, top1 in (("a", 0.9), ("b", 0.2))}
    }
    _, changes = told(
        row("baseline"),
        row("prune", -0.2, macs=500, facts=scan),
        row("finetune", -0.04, macs=500),
        row("separate", -0.045, macs=400),
        file("float32", -0.05, macs=400),
    )
    assert changes[0] == (
        "A milder prune: it lost 4.00 points, its fine-tuning included, with 50% of the MACs left; 88% left is a linear "
        "guess at what the limit allows. Its scan found b, a the dearest to cut: keep them."
    )
    assert changes[1].startswith("Training after separate: Finetune(")
    assert changes[2] == "A milder separate: it lost 0.50 points, with 80% of the MACs left."


def test_the_layers_that_cause_most_of_the_divergence_are_named() -> None:
    costs = [{"layer": name, "kl": kl} for name, kl in (("a", 0.1), ("b", 0.5), ("c", 0.2), ("d", 0.2))]
    rows = (
        row("baseline"),
        row("quantize", -0.03, precision="int8", facts={"sensitivity": costs}),
        file("int8", -0.03),
    )
    _, changes = told(*rows)
    assert changes[0].startswith("Layers in float: quantization lost 3.00 points; b cause 50% of the divergence")
    assert "max_float_layers=1" in changes[0]
    _, changes = told(*rows, quantize={"stage": "quantize", "training": {"epochs": 4, "steps": 0}})
    assert changes[-1] == "A longer quantize: 8 epochs instead of 4."
    _, changes = told(*rows, quantize={"stage": "quantize", "training": None})
    assert changes[-1].startswith("Training with quantization")


def test_a_slow_file_is_told_of_its_faster_sister_and_of_what_lies_outside_the_backend() -> None:
    slow = {"reason": "1.20 of the baseline's time on onnx", "facts": {"coverage": {"undelegated_share": 0.4}}}
    closest, changes = told(row("baseline"), file("int8", ratio=1.2, **slow), file("float32", -0.9, ratio=0.8))
    assert "it takes 1.20× the baseline's time on onnx where 1× may be" in closest
    assert changes[0] == "The float32 file of onnx is faster: 0.80×." and changes[1].startswith("40% of its MACs")
    noisy = file("int8", ratio=0.98, verdict="not-checked", reason="0.98 of the baseline's time on onnx: too noisy")
    closest, changes = told(row("baseline"), noisy)
    assert "the clock could not tell (0.93× to 1.03×)" in closest and changes[0].startswith("A quieter machine")


def test_a_file_that_answers_otherwise_than_its_network_is_sent_to_its_layers() -> None:
    closest, changes = told(row("baseline"), file("float32", agreement=Agreement(top1=0.9, max_abs=1.0, n=100)))
    assert "90.00% of the images where 99.00% are wanted" in closest and "--layers" in changes[0]


def test_a_run_that_ended_at_a_step_is_told_which() -> None:
    closest, changes = told(row("baseline"), row("prune", -0.2, macs=500, verdict="fail"))
    assert closest == "The run ended at prune, failed: it lost 20.00 points of top-1 where 1.00 points may go."
    assert changes[0].startswith("Training after prune") and "98% left" in changes[1]


@pytest.mark.parametrize("target", ["onnx", "xnnpack"])
def test_a_target_without_a_file_is_advised_though_another_has_one(target: str) -> None:
    passed = file("int8", target=target, verdict="pass")
    other = file("int8", -0.05, target={"onnx": "xnnpack", "xnnpack": "onnx"}[target])
    closest, _ = told(row("baseline"), passed, other)
    assert other.target is not None and other.target in closest


def test_the_advice_is_in_report_json_on_the_page_and_in_the_terminal(failing: Report) -> None:
    from rich.console import Console

    from edgewise.report.page import render_page
    from edgewise.report.terminal import terminal_table

    found = failing.to_json()["next"]
    assert found["closest"].startswith("Closest to passing is onnx int8 (artifacts/onnx/failing-int8)")
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(terminal_table(failing))
    shown = console.export_text()
    for line in (found["closest"], *found["changes"]):
        assert line in html.unescape(render_page(failing)) and line in shown
    assert Report.from_json(failing.to_json()).to_json() == failing.to_json()


def test_what_could_not_be_written_is_told_in_its_own_words() -> None:
    closest, changes = told(
        row("baseline"), file("int8", accuracy=None, latency=None, bytes=None, reason="no lowering")
    )
    assert closest == "Closest to passing is onnx int8, failed: no lowering." and changes == ()
