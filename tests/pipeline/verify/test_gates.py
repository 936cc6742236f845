"""Every gate gives each of its answers, at the limit and on both sides of it."""

from __future__ import annotations

import pytest

from edgewise.files.open import Grade
from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report.rows import Row, Verdict
from edgewise.verify.gates import (
    Finding,
    Limits,
    judge,
    on_accuracy,
    on_agreement,
    on_coverage,
    on_covered_macs,
    on_grade,
    on_input,
    on_latency,
)


def measured(delta: float, low: float, high: float) -> Accuracy:
    versus = Difference(delta=delta, ci95=(low, high), p_value=0.5)
    return Accuracy(top1=0.9, n=1_000, ci95=(0.88, 0.92), vs_baseline=versus)


def timed(ratio: float, low: float, high: float) -> Latency:
    return Latency(on="onnx", batch=1, threads=1, p50_ms=1.0, p90_ms=1.2, ratio_to_baseline=ratio, ci95=(low, high))


@pytest.mark.parametrize(
    ("delta", "low", "verdict"),
    [
        (-0.03, -0.04, "fail"),
        (-0.0201, -0.021, "fail"),
        (-0.02, -0.03, "not-checked"),
        (-0.01, -0.0201, "not-checked"),
        (-0.01, -0.02, "pass"),
        (0.0, 0.0, "pass"),
        (0.05, 0.01, "pass"),
        (0.05, -0.03, "not-checked"),
    ],
)
def test_accuracy_gate(delta: float, low: float, verdict: Verdict) -> None:
    assert on_accuracy(measured(delta, low, 0.06), Limits(max_drop=0.02)).verdict == verdict


def test_accuracy_gate_tells_the_numbers() -> None:
    failed = on_accuracy(measured(-0.03, -0.04, -0.02), Limits(max_drop=0.02)).reason
    assert "3.00 points" in failed and "2.00 points allowed" in failed and "1,000" in failed
    assert "4.00 points" in on_accuracy(measured(-0.01, -0.04, 0.01), Limits(max_drop=0.02)).reason


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.5, 0.7, "pass"),
        (0.7, 0.8, "pass"),
        (0.79, 0.81, "not-checked"),
        (0.8, 0.9, "not-checked"),
        (0.81, 0.9, "fail"),
    ],
)
def test_latency_gate(low: float, high: float, verdict: Verdict) -> None:
    found = on_latency(timed((low + high) / 2, low, high), Limits(max_latency_ratio=0.8))
    assert found.verdict == verdict
    assert "onnx" in found.reason and "0.8 allowed" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.0, 1.01, "pass"), (1.04, 1.06, "not-checked"), (1.06, 1.1, "fail")]
)
def test_a_step_that_saved_no_work_claims_no_speed(low: float, high: float, verdict: Verdict) -> None:
    found = on_latency(timed((low + high) / 2, low, high), Limits(max_latency_ratio=0.8), same_work=True)
    assert found.verdict == verdict and "1.05 allowed" in found.reason
    assert on_latency(timed((low + high) / 2, low, high), Limits()).verdict != "pass"
    assert on_latency(timed(1.2, 1.1, 1.3), Limits(max_latency_ratio=2), same_work=True).verdict == "pass"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.7, 0.9, "pass"), (0.99, 1.0, "pass"), (0.99, 1.01, "not-checked"), (1.01, 1.2, "fail")],
)
def test_gate_against_the_input_of_a_step(low: float, high: float, verdict: Verdict) -> None:
    found = on_input(timed((low + high) / 2, low, high), "finetune", Limits(max_latency_ratio=9))
    assert found.verdict == verdict
    assert "its input, finetune," in found.reason and "1 allowed" in found.reason
    assert found.reason.startswith("not faster") == (verdict == "fail")


@pytest.mark.parametrize(("share", "verdict"), [(0.98, "fail"), (0.9899, "fail"), (0.99, "pass"), (1.0, "pass")])
def test_agreement_gate(share: float, verdict: Verdict) -> None:
    found = on_agreement(Agreement(top1=share, max_abs=0.1, n=540), Limits(min_agreement=0.99))
    assert found.verdict == verdict
    assert "540" in found.reason


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
    assert judge(good, good) == Finding("pass", "p; p")
    assert judge(good, open_) == open_
    assert judge(open_, bad, good, Finding("fail", "g")) == Finding("fail", "f; g")


def test_judge_without_a_gate_decides_nothing() -> None:
    assert judge().verdict == "not-checked"


def test_a_written_file_passes_no_gate_that_others_pass() -> None:
    assert judge(on_grade("written", "why"), on_coverage((), Limits())).verdict == "not-checked"


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
