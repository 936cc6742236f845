"""Every gate gives each of its answers, at the limit and on both sides of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgewise.files.open import Grade
from edgewise.measure.calibration import Calibration
from edgewise.measure.class_falls import ClassFall
from edgewise.measure.memory import ColdStart
from edgewise.measure.paired import score_interval
from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report.rows import Row, Verdict
from edgewise.verify.gates import (
    Finding,
    Limits,
    gates_of,
    needs_layers,
    on_accuracy,
    on_agreement,
    on_calibration,
    on_classes,
    on_coverage,
    on_covered_macs,
    on_file,
    on_grade,
    on_input,
    on_latency,
    on_sqnr,
    on_top5,
    worst_finding,
)


def measured(
    delta: float, low: float, high: float, p_value: float = 0.5, falls: tuple[ClassFall, ...] = ()
) -> Accuracy:
    versus = Difference(delta=delta, ci95=(low, high), p_value=p_value, gained=10, lost=10 - round(1_000 * delta))
    return Accuracy(top1=0.9, n=1_000, ci95=(0.88, 0.92), vs_baseline=versus, falls=falls)


def calibrated(rise: float, low: float, high: float) -> Accuracy:
    return replace(measured(0, 0, 0), calibration=Calibration(error=0.05, rise=rise, ci95=(low, high)))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.02, "pass"), (0.0, 0.021, "not-checked"), (0.02, 0.03, "not-checked"), (0.021, 0.03, "fail")],
)
def test_calibration_gate(low: float, high: float, verdict: Verdict) -> None:
    found = on_calibration(calibrated((low + high) / 2, low, high), Limits(max_ece_rise=0.02))
    assert (found.verdict, found.gate) == (verdict, "calibration")
    assert "calibration error is 5.00%" in found.reason and "2.00 points allowed" in found.reason
    assert on_calibration(calibrated(0.5, 0.4, 0.6), Limits()) == Finding("pass", ""), "reported, not limited"


def test_a_limit_on_what_was_not_measured_is_no_pass() -> None:
    assert on_calibration(measured(0, 0, 0), Limits(max_ece_rise=0.02)).verdict == "not-checked"
    found = on_top5(measured(0, 0, 0), Limits(max_top5_drop=0.02))
    assert found == Finding("not-checked", "top-5 is limited, and is not told below 20 classes", "top-5")


@pytest.mark.parametrize(
    ("delta", "low", "high", "verdict"),
    [(-0.03, -0.04, -0.021, "fail"), (-0.02, -0.03, -0.01, "not-checked"), (-0.01, -0.02, 0.0, "pass")],
)
def test_top5_gate(delta: float, low: float, high: float, verdict: Verdict) -> None:
    versus = measured(delta, low, high).vs_baseline
    found = on_top5(replace(measured(0, 0, 0), top5_vs_baseline=versus), Limits(max_top5_drop=0.02))
    assert (found.verdict, found.gate) == (verdict, "top-5") and found.reason.startswith("top-5 ")


@pytest.mark.parametrize(
    ("sqnr", "not_finite", "verdict"), [(20.0, 0, "pass"), (19.9, 0, "fail"), (None, 0, "pass"), (None, 3, "fail")]
)
def test_sqnr_gate(sqnr: float | None, not_finite: int, verdict: Verdict) -> None:
    seen = Agreement(top1=1.0, max_abs=0.0, n=100, sqnr_db=sqnr, not_finite=not_finite)
    found = on_sqnr(seen, Limits(min_sqnr_db=20))
    assert (found.verdict, found.gate) == (verdict, "SQNR") and "20 dB wanted" in found.reason
    assert on_sqnr(seen, Limits()) == Finding("pass", "")


def timed(ratio: float, low: float, high: float) -> Latency:
    return Latency(on="onnx", batch=1, threads=1, p50_ms=1.0, p90_ms=1.2, ratio_to_baseline=ratio, ci95=(low, high))


@pytest.mark.parametrize(
    ("delta", "low", "high", "p_value", "verdict"),
    [
        (-0.03, -0.04, -0.021, 0.001, "fail"),  # certainly more than allowed
        (-0.03, -0.05, -0.01, 0.04, "fail"),  # more than allowed, and certainly a fall
        (-0.03, -0.07, 0.001, 0.06, "not-checked"),  # more than allowed, perhaps by chance
        (-0.02, -0.03, -0.01, 0.001, "not-checked"),
        (-0.01, -0.0201, 0.0, 0.05, "not-checked"),
        (-0.01, -0.02, 0.0, 0.05, "pass"),
        (0.0, 0.0, 0.0, 1.0, "pass"),
        (0.05, 0.01, 0.09, 0.001, "pass"),
        (0.05, -0.03, 0.13, 0.5, "not-checked"),
    ],
)
def test_accuracy_gate(delta: float, low: float, high: float, p_value: float, verdict: Verdict) -> None:
    assert on_accuracy(measured(delta, low, high, p_value), Limits(max_drop=0.02)).verdict == verdict


def test_accuracy_gate_tells_the_numbers() -> None:
    failed = on_accuracy(measured(-0.03, -0.04, -0.021, 0.001), Limits(max_drop=0.02)).reason
    assert "3.00 points" in failed and "2.00 points allowed" in failed and "n = 1,000, p = 0.001" in failed
    open_ = on_accuracy(measured(-0.01, -0.04, 0.01), Limits(max_drop=0.02)).reason
    assert "4.00 points" in open_
    number = int(open_.split("; ")[1].split(" would decide")[0].replace(",", ""))
    low, _ = score_interval(0.01 * number, 0.02 * number, number)
    assert low == pytest.approx(-0.02, abs=1e-4)


def test_a_fall_of_just_the_limit_is_never_decided() -> None:
    assert "no number of images" in on_accuracy(measured(-0.02, -0.03, -0.01), Limits(max_drop=0.02)).reason


FALL = ClassFall(label=1, n=100, gained=0, lost=12, p_value=0.001)


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        (Limits(max_drop=0.02), "fail"),  # five times two points
        (Limits(max_drop=0.024), "pass"),
        (Limits(max_drop=0.02, max_class_drop=0.12), "pass"),
        (Limits(max_drop=0.5, max_class_drop=0.11), "fail"),
        (Limits(max_drop=0.3), "pass"),
    ],
)
def test_gate_on_single_classes(limits: Limits, verdict: Verdict) -> None:
    found = on_classes(measured(0.0, -0.01, 0.01, falls=(FALL,)), limits, ("ant", "bee"))
    assert found.verdict == verdict
    assert ("bee by 12.00 points of 100" in found.reason) == (verdict == "fail")
    assert on_classes(measured(0.0, -0.01, 0.01), limits).verdict == "pass"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.5, 0.7, "pass"),
        (0.7, 0.8, "pass"),
        (0.79, 0.81, "not-checked"),
        (0.8, 0.9, "not-checked"),
        (0.81, 0.9, "not-checked"),  # a file differs by so much from itself
        (0.82, 0.9, "fail"),
    ],
)
def test_latency_gate(low: float, high: float, verdict: Verdict) -> None:
    found = on_latency(timed((low + high) / 2, low, high), Limits(max_latency_ratio=0.8))
    assert found.verdict == verdict
    assert "onnx" in found.reason and "0.8 allowed" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.0, 1.01, "pass"), (1.04, 1.06, "not-checked"), (1.06, 1.1, "not-checked"), (1.08, 1.1, "fail")],
)
def test_a_step_that_saved_no_work_claims_no_speed(low: float, high: float, verdict: Verdict) -> None:
    found = on_latency(timed((low + high) / 2, low, high), Limits(max_latency_ratio=0.8), same_work=True)
    assert found.verdict == verdict and "1.05 allowed" in found.reason
    assert on_latency(timed((low + high) / 2, low, high), Limits()).verdict != "pass"
    assert on_latency(timed(1.2, 1.1, 1.3), Limits(max_latency_ratio=2), same_work=True).verdict == "pass"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.7, 0.9, "pass"),
        (0.99, 1.0, "pass"),
        (0.99, 1.01, "not-checked"),
        (1.01, 1.2, "not-checked"),
        (1.03, 1.2, "fail"),
    ],
)
def test_gate_against_the_input_of_a_step(low: float, high: float, verdict: Verdict) -> None:
    found = on_input(timed((low + high) / 2, low, high), "finetune", Limits(max_latency_ratio=9))
    assert found.verdict == verdict
    assert "its input, finetune," in found.reason and "1 allowed" in found.reason
    assert found.reason.startswith("not faster") == (verdict == "fail")


def agreed(n: int, differ: int, ties: int = 0, **more: Any) -> Agreement:
    return Agreement(top1=1 - (differ + ties) / n, max_abs=0.1, n=n, ties=ties, differ=differ, **more)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (agreed(540, 0, ties=30), "pass"),  # ties are no fault
        (agreed(1_000, 4), "pass"),  # at most 0.91 %, exactly
        (agreed(1_000, 5), "not-checked"),  # at most 1.05 %
        (agreed(540, 20), "fail"),
        (agreed(540, 12), "fail"),  # at least 1.3 %
        (agreed(200, 0), "not-checked"),
        (agreed(1_000, 0, not_finite=1), "fail"),
        (agreed(1_000, 0, noise=2.1, noise_unit="steps", noise_allowed=2.0), "fail"),
        (agreed(1_000, 0, noise=2.0, noise_unit="steps", noise_allowed=2.0), "pass"),
        (agreed(1_000, 40, noise=8.0, noise_unit="steps", noise_allowed=2.0, layers_apart=0), "pass"),
        (agreed(1_000, 0, noise=8.1, noise_unit="steps", noise_allowed=2.0, layers_apart=0), "fail"),
        (agreed(1_000, 0, layers_apart=1, first_apart="conv1"), "fail"),
        (Agreement(top1=0.97, max_abs=0.1, n=540), "fail"),  # ties not told apart
    ],
)
def test_agreement_gate(found: Agreement, verdict: Verdict) -> None:
    judged = on_agreement(found, Limits(min_agreement=0.99), "here ")
    assert judged.verdict == verdict and judged.gate == "agreement"
    assert judged.reason.startswith("here same class") and f"{found.n:,}" in judged.reason


def test_agreement_gate_says_how_many_images_would_decide() -> None:
    assert "99.00% wanted; 299 images" in on_agreement(agreed(200, 0), Limits()).reason
    assert "no number" in on_agreement(agreed(200, 2), Limits()).reason


@pytest.mark.parametrize(("wanted", "differ", "verdict"), [(1.0, 0, "pass"), (1.0, 1, "fail"), (0.0, 200, "pass")])
def test_agreement_gate_at_its_ends(wanted: float, differ: int, verdict: Verdict) -> None:
    assert on_agreement(agreed(200, differ), Limits(min_agreement=wanted)).verdict == verdict


def test_only_what_does_not_pass_has_its_layers_compared() -> None:
    assert needs_layers(agreed(200, 0), Limits()) and needs_layers(agreed(540, 20), Limits())
    assert not needs_layers(agreed(540, 0), Limits())
    assert not needs_layers(agreed(540, 20, layers_apart=2), Limits())


LIMITED = Limits(max_bytes=100, max_peak_bytes=200, max_moved_bytes=300, max_load_ms=4.0, max_first_call_ms=5.0)


@pytest.mark.parametrize(
    ("gate", "size", "moved", "peak", "load", "first"),
    [
        ("size", 101, 300, 200, 4.0, 5.0),
        ("bytes moved", 100, 301, 200, 4.0, 5.0),
        ("memory", 100, 300, 201, 4.0, 5.0),
        ("load time", 100, 300, 200, 4.1, 5.0),
        ("first call", 100, 300, 200, 4.0, 5.1),
        ("", 100, 300, 200, 4.0, 5.0),
    ],
)
def test_limits_on_what_a_file_costs(gate: str, size: int, moved: int, peak: int, load: float, first: float) -> None:
    cold = ColdStart(peak_bytes=peak, load_ms=load, first_call_ms=first)
    found = on_file(LIMITED, size, moved, cold)
    assert [one.gate for one in found if one.verdict == "fail"] == ([gate] if gate else [])
    assert all("allowed" in one.reason for one in found)
    assert {one.verdict for one in on_file(Limits(), size, moved, cold)} == {"pass"}


def test_a_limited_cost_that_nothing_measured_is_no_pass() -> None:
    found = on_file(LIMITED, 1, 1, None)
    assert [one.gate for one in found if one.verdict == "not-checked"] == ["memory", "load time", "first call"]


def test_each_gate_s_worst_verdict_is_kept() -> None:
    findings = [Finding("pass", "a", "x"), Finding("fail", "b", "x"), Finding("pass", "c", "y"), Finding("fail", "d")]
    assert gates_of(findings) == {"x": "fail", "y": "pass"}


@pytest.mark.parametrize(("limit", "verdict"), [(None, "pass"), (3, "pass"), (2, "pass"), (1, "fail"), (0, "fail")])
def test_coverage_gate(limit: int | None, verdict: Verdict) -> None:
    found = on_coverage(("mean", "cat"), Limits(max_undelegated=limit))
    assert found.verdict == verdict
    assert "2 operators" in found.reason and "cat, mean" in found.reason


def test_coverage_counts_occurrences_and_names_each_once() -> None:
    reason = on_coverage(("mean", "mean"), Limits(max_undelegated=1)).reason
    assert reason.startswith("2 operators") and reason.count("mean") == 1


@pytest.mark.parametrize(("grade", "verdict"), [("runtime", "pass"), ("reference", "pass"), ("written", "not-checked")])
def test_grade_gate(grade: Grade, verdict: Verdict) -> None:
    assert on_grade(grade, "no device").verdict == verdict


def test_judge_picks_the_worst_with_all_its_reasons() -> None:
    good, open_, bad = Finding("pass", "p"), Finding("not-checked", "n"), Finding("fail", "f")
    assert worst_finding(good, good) == Finding("pass", "p; p")
    assert worst_finding(good, open_) == open_
    assert worst_finding(open_, bad, good, Finding("fail", "g")) == Finding("fail", "f; g")


def test_judge_without_a_gate_decides_nothing() -> None:
    assert worst_finding().verdict == "not-checked"


def test_a_written_file_passes_no_gate_that_others_pass() -> None:
    assert worst_finding(on_grade("written", "why"), on_coverage((), Limits())).verdict == "not-checked"


def test_a_row_of_a_written_file_cannot_be_made_to_pass() -> None:
    with pytest.raises(ValueError, match="only written"):
        Row(
            step="artifact", target="coreml", params=1, macs=1, bytes=1, accuracy=None, latency=None,
            verification="written", undelegated=(), verdict="pass", reason="", seconds=0.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("outside", "allowed", "verdict"), [(25, None, "pass"), (25, 0.25, "pass"), (26, 0.25, "fail"), (0, 0.0, "pass")]
)
def test_coverage_gate_by_share_of_macs(outside: int, allowed: float | None, verdict: Verdict) -> None:
    operators = {"conv": {"delegated": 1, "undelegated": 1, "macs": 100, "undelegated_macs": outside}}
    coverage = {"macs": 100, "undelegated_macs": outside, "undelegated_share": outside / 100, "by_operator": operators}
    found = on_covered_macs({"coverage": coverage}, Limits(max_undelegated_macs=allowed))
    assert found.verdict == verdict
    assert verdict != "fail" or "26.0% of 100 MACs outside the backend (conv 26), 25.0% allowed" in found.reason


def test_coverage_that_nobody_tells_is_no_pass_where_it_is_limited() -> None:
    assert on_covered_macs({}, Limits()).verdict == "pass"
    assert on_covered_macs({}, Limits(max_undelegated_macs=0.5)).verdict == "not-checked"
