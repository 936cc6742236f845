"""What a search weighs, read from rows as a run writes them, and bounds that intervals decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgewise.errors import RequestError
from edgewise.measure.values import Accuracy, Difference, Latency
from edgewise.report.rows import Row
from edgewise.search.quantities import QUANTITIES, UNKNOWN, choose_row, read_bound, read_measure, read_objectives
from edgewise.targets import TargetError


def make_row(*, delta: float = 0.0, ci: tuple[float, float] = (-0.01, 0.01), p: float = 1.0, **fields: Any) -> Row:
    """A file for onnx, 0.9 of 1,000 images right, 0.5 of the baseline's time (0.4 to 0.6), 2 ms, 1,000 bytes."""
    accuracy = Accuracy(top1=0.9, n=1000, ci95=(0.88, 0.92), vs_baseline=Difference(delta=delta, ci95=ci, p_value=p))
    latency = Latency(on="onnx", batch=1, threads=1, p50_ms=2.0, p90_ms=3.0, ratio_to_baseline=0.5, ci95=(0.4, 0.6))
    row = Row(
        step="artifact", target="onnx", params=1, macs=1, bytes=1000, accuracy=accuracy, latency=latency, verification="runtime",
        undelegated=(), verdict="pass", reason="", seconds=1.0, precision="int8", peak_bytes=5000,
    )  # fmt: skip
    return dataclasses.replace(row, **fields)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("top1", (0.9, 0.88, 0.92)),
        ("drop", (0.02, 0.01, 0.03)),
        ("latency", (0.5, 0.4, 0.6)),
        ("ms", (2.0, 1.6, 2.4)),  # as wide as the ratio: 2 ms × 0.4 / 0.5 and × 0.6 / 0.5
        ("bytes", (1000.0, 1000.0, 1000.0)),
        ("peak_memory", (5000.0, 5000.0, 5000.0)),
    ],
)
def test_each_quantity_is_read_with_its_interval(name: str, figure: tuple[float, float, float]) -> None:
    row = make_row(delta=-0.02, ci=(-0.03, -0.01))
    assert read_measure(name).read([row], ["onnx"]) == pytest.approx(figure)


def test_what_was_not_measured_is_no_figure() -> None:
    row = make_row(latency=None, peak_bytes=None)
    assert all(read_measure(name).read([row], ["onnx"]) is None for name in ("latency", "ms", "peak_memory"))
    assert read_measure("bytes@xnnpack").read([row], ["onnx"]) is None
    verdict, excess, reason = read_bound("ms=5", "--limit").judge([row], ["onnx"])
    assert (verdict, excess) == ("not-checked", UNKNOWN) and "not measured" in reason


@pytest.mark.parametrize(
    ("bound", "verdict", "sign"),
    [
        ("latency=0.61", "pass", -1),
        ("latency=0.55", "not-checked", -1),
        ("latency=0.45", "not-checked", 1),
        ("latency=0.39", "fail", 1),
        ("ms=2.5", "pass", -1),
        ("ms=1.5", "fail", 1),
        ("top1=0.87", "pass", -1),
        ("top1=0.89", "not-checked", -1),
        ("top1=0.91", "not-checked", 1),
        ("top1=0.93", "fail", 1),
        ("bytes=1000", "pass", 0),
        ("bytes=999", "fail", 1),
    ],
)
def test_an_interval_decides_a_bound_and_else_the_value_counts(bound: str, verdict: str, sign: int) -> None:
    found, excess, _ = read_bound(bound, "--limit").judge([make_row()], ["onnx"])
    assert found == verdict and (excess > 0) - (excess < 0) == sign


def test_a_fall_is_judged_as_the_gate_does() -> None:
    certain = make_row(delta=-0.05, ci=(-0.07, -0.03), p=1e-6)
    assert read_bound("drop=0.02", "--limit").judge([certain], ["onnx"])[0] == "fail"
    none = make_row(delta=0.0, ci=(-0.004, 0.004))
    verdict, excess, _ = read_bound("drop=0.005", "--limit").judge([none], ["onnx"])
    assert verdict == "pass" and excess <= 0
    open_ = make_row(delta=-0.004, ci=(-0.02, 0.01), p=0.6)
    verdict, excess, _ = read_bound("drop=0.005", "--limit").judge([open_], ["onnx"])
    assert verdict == "not-checked" and excess < 0


def test_the_file_to_take_is_one_that_passed_then_the_fastest() -> None:
    slow = make_row(precision="float32")
    fast = make_row(latency=dataclasses.replace(slow.latency, ratio_to_baseline=0.2, ci95=(0.1, 0.3)))  # type: ignore[type-var]
    assert choose_row([slow, fast], "onnx") is fast
    assert choose_row([slow, dataclasses.replace(fast, verdict="fail")], "onnx") is slow
    assert choose_row([dataclasses.replace(slow, step="fold", target=None)], "onnx") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latncy", "unknown objective 'latncy'. Did you mean 'latency'"),
        ("", "unknown objective ''"),
        ("top1@", None),
    ],
)
def test_an_unknown_objective_is_told_with_the_choices(text: str, words: str | None) -> None:
    with pytest.raises((RequestError, TargetError), match=words or "unknown target"):
        read_measure(text)
    with pytest.raises(TargetError, match=r"unknown target .xnpack."):
        read_measure("latency@xnpack")


@pytest.mark.parametrize("text", ["drop", "drop=", "drop=x", "ms=-1", "ms=inf", "ms=nan", "=3"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        read_bound(text, "--limit")


def test_objectives_are_named_once() -> None:
    assert [str(m) for m in read_objectives(["top1", "latency", "latency@onnx"])] == ["top1", "latency", "latency@onnx"]
    with pytest.raises(RequestError, match="names bytes twice"):
        read_objectives(["bytes", "top1", "bytes"])
    assert {q.better for q in QUANTITIES.values()} == {"higher", "lower"}
