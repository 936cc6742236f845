"""Reports of three runs, worked out by hand: one that passed, one that failed, one that nothing could decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgewise.measure.values import Accuracy, Agreement, Difference, Latency
from edgewise.report.document import Report, Section
from edgewise.report.recommend import recommend_files
from edgewise.report.rows import ArtifactFile, Row


def accuracy(right: int, first: int = 351, n: int = 360) -> Accuracy:
    top1, delta = right / n, (right - first) / n
    change = Difference(delta=delta, ci95=(delta - 0.006, delta + 0.006), p_value=0.25 if delta else 1.0)
    return Accuracy(top1=top1, n=n, ci95=(max(0.0, top1 - 0.015), min(1.0, top1 + 0.015)), vs_baseline=change)


def latency(on: str, ratio: float) -> Latency:
    ms = 0.4 if on == "onnx" else 0.3
    fields = {"p50_ms": ms * ratio, "p90_ms": ms * ratio * 1.2, "ratio_to_baseline": ratio}
    return Latency(on=on, batch=1, threads=1, ci95=(ratio - 0.02, ratio + 0.03), **fields)


def row(step: str, right: int, ratio: float, **changes: Any) -> Row:
    plain = Row(
        step=step, target=None, params=40_000, macs=2_000_000, bytes=170_000, accuracy=accuracy(right),
        latency=latency("onnx", ratio), verification=None, undelegated=(), verdict="pass", reason="as it should be",
        seconds=12.3,
    )  # fmt: skip
    return replace(plain, **changes)


def file(target: str, precision: Any, right: int, ratio: float, **changes: Any) -> Row:
    facts = {"opset": 18, "operators": {"Conv": 9, "Relu": 9}}
    plain = row(
        "artifact", right, ratio, target=target, precision=precision, bytes=52_000 if precision == "int8" else 170_000,
        latency=latency(target, ratio), verification="runtime", facts=facts, peak_bytes=14_000_000,
        agreement=Agreement(top1=358 / 360, max_abs=0.213, n=360),
    )  # fmt: skip
    return replace(plain, **changes)


PLAN = {
    "into": "depthwise", "max_drop": 0.02, "timed_on": "onnx", "threads": 1, "accepted": 1, "dense_macs": 2000,
    "new_macs": 400, "calibration": {"n": 1000, "before": 0.96, "substituted": 0.95, "distilled": 0.955},
    "layers": [
        {"name": f"stages.{i}.conv1.0", "shape": "16 to 16, 3x3", "dense_macs": 2000, "new_macs": 400, "middle": 16,
         "input_shape": [1, 16, 8, 8], "error": 0.25, "dense_ms": 0.5, "new_ms": 0.25 * i, "ratio_ci95": [0.2, 0.3],
         "cost": 0.004, "top1": 0.95, "accepted": i < 2, "reason": "its time"} for i in (1, 3)
    ],
}  # fmt: skip
SCAN = {"conv1": {"0": {"top1": 0.9, "loss": 0.3}, "0.5": {"top1": 0.5, "loss": 1.3}}}
WIDTHS = {"budget": {"budget": "macs", "wanted": 0.5, "before": 1000, "left": 480}, "widths": {"conv1": [16, 8]}}
BARS = {
    "data": [{"type": "bar", "orientation": "h", "y": ["conv2", "conv1"], "x": [0.1, 0.4], "hovertext": ["a", "b"]}],
    "layout": {"xaxis": {"title": {"text": "divergence, nats"}}},
}


def run(name: str, *rows: Row) -> Report:
    files = [
        ArtifactFile(target=r.target, path=f"artifacts/{r.target}/{name}-{r.precision}", sha256="ab" * 32, bytes=52_000)
        for r in rows if r.target is not None
    ]  # fmt: skip
    return Report(
        recipe={"name": name, "model": "tiny_resnet", "data": "digits", "targets": ["onnx", "xnnpack"], "seed": 0},
        environment={"python": "3.11.7", "torch": "2.13.0", "cpu": "A processor", "packages": {"torch": "2.13.0"}},
        rows=list(rows),
        artifacts=files,
        sections=[Section(title="What quantizing each layer costs", figure=BARS)],
        recommended=recommend_files(rows, files),
    )


def passing() -> Report:
    """A run of every kind of step whose files all passed."""
    return run(
        "passing",
        row("baseline", 351, 1.0, bytes=320_000, params=80_000, macs=4_000_000),
        row("prune", 340, 0.7, verdict="not-checked", reason="accuracy is judged after the fine-tuning that follows",
            facts=WIDTHS | {"channel_sensitivity": SCAN}),
        row("finetune", 350, 0.7),
        row("separate", 350, 0.6, facts={"plan": PLAN}),
        row("quantize", 350, 0.6, latency=None, bytes=None),
        file("onnx", "float32", 350, 0.6),
        file("xnnpack", "float32", 350, 0.5),
        file("onnx", "int8", 350, 0.65),
        file("xnnpack", "int8", 350, 0.4),
    )  # fmt: skip


def failing() -> Report:
    """One file slower than the baseline and one that answers otherwise."""
    slow = "1.20 of the baseline's time on onnx (95 % interval 1.18 to 1.23, 1 allowed)"
    return run(
        "failing",
        row("baseline", 351, 1.0),
        file("onnx", "int8", 350, 1.2, verdict="fail", reason=slow),
        file("xnnpack", "int8", 300, 0.4, verdict="fail", reason="top-1 fell by 14.17 points, 1.00 allowed (n = 360)"),
    )


def undecided() -> Report:
    """A file of which too few images tell too little."""
    few = "top-1 changed by -0.28 points from the baseline, 0.50 allowed, but 360 test images cannot exclude a fall of 0.88"
    return run(
        "undecided",
        row("baseline", 351, 1.0),
        file("onnx", "int8", 350, 0.6, verdict="not-checked", reason=few),
        file("xnnpack", "int8", 350, 0.6, verdict="not-checked", reason=few),
    )


@pytest.fixture(params=[passing, failing, undecided], ids=["passing", "failing", "undecided"])
def any_run(request: pytest.FixtureRequest) -> Report:
    """Each of the three in turn."""
    made: Report = request.param()
    return made


@pytest.fixture(name="passing")
def a_passing_run() -> Report:
    """The run that passed."""
    return passing()


@pytest.fixture(name="failing")
def a_failing_run() -> Report:
    """The run that failed."""
    return failing()


@pytest.fixture(name="undecided")
def an_undecided_run() -> Report:
    """The run that nothing could decide."""
    return undecided()
