"""The picture of a substitution plan on the page."""

from __future__ import annotations

import copy
from typing import Any

from edgewise.report.document import Report
from edgewise.report.page import render_page
from edgewise.report.plan import ACCEPTED, REJECTED, plan_pictures
from edgewise.report.rows import Row


def layer(name: str, accepted: bool, **changes: Any) -> dict[str, Any]:
    fields = {
        "name": name, "shape": "16 to 16, 3x3", "dense_macs": 2000, "new_macs": 400, "input_shape": [1, 16, 8, 8],
        "middle": 16, "error": 0.25, "dense_ms": 0.5, "new_ms": 0.125, "ratio_ci95": [0.2, 0.3], "cost": 0.004,
        "top1": 0.95, "accepted": accepted, "reason": "the reason of " + name,
    }  # fmt: skip
    return fields | changes


PLAN = {
    "into": "depthwise",
    "max_drop": 0.02,
    "timed_on": "onnx",
    "threads": 1,
    "calibration": {"n": 1000, "before": 0.96, "substituted": 0.95, "distilled": 0.955},
    "accepted": 1,
    "dense_macs": 2000,
    "new_macs": 400,
    "layers": [layer("conv1", True), layer("<b>conv2", False, new_ms=0.75, error=None, cost=None)],
}


def row(plan: dict[str, Any] | None) -> Row:
    return Row(
        step="separate", target=None, params=1, macs=1, bytes=1, accuracy=None, latency=None, verification=None,
        undelegated=(), verdict="not-checked", reason="", seconds=1.0, facts={} if plan is None else {"plan": plan},
    )  # fmt: skip


def test_rows_without_a_plan_have_no_picture() -> None:
    assert plan_pictures([(row(None), "separate")]) == []


def test_every_layer_is_drawn_with_its_verdict() -> None:
    (picture,) = plan_pictures([(row(PLAN), "separate")])
    assert "1 of 2 layers replaced; in them 2.00k multiply-accumulates became 400, 5.00 times fewer" in picture.summary
    assert "96.00 % before, 95.00 % with the new forms, 95.50 % after" in picture.summary
    assert "budget: 2 points" in picture.summary
    chart = picture.chart
    assert [column.title for column in chart.columns] == [
        "error of the outputs",
        "MACs saved",
        "ms saved on onnx",
        "cost to the classes, nats",
    ]
    assert [column.values[0] for column in chart.columns] == [0.25, 1600, 0.375, 0.004]
    assert "the reason of conv1" in chart.told[0]
    assert chart.names == ("✓ conv1", "✗ <b>conv2") and chart.colours == (ACCEPTED, REJECTED)
    assert chart.columns[2].values[1] == -0.25, "a layer that would be slower shows what it would lose"
    assert chart.columns[0].texts[1] == "–" and chart.columns[2].texts == ("0.375", "−0.250")


def test_the_page_holds_chart_table_and_reasons() -> None:
    page = render_page(Report(recipe={"name": "r"}, environment={}, rows=[row(PLAN)]))
    assert "The plan of separate, layer by layer" in page
    assert "the reason of conv1" in page and "✗ stays" in page and "0.500 to 0.125" in page
    assert "&lt;b&gt;conv2" in page and "<b>conv2" not in page
    assert "MACs saved" in page
    assert "input_shape" not in page, "what the picture shows is not listed a second time"


def test_a_plan_that_was_not_timed_has_no_clock_in_it() -> None:
    plan = copy.deepcopy(PLAN) | {"timed_on": None, "max_drop": None}
    for entry in plan["layers"]:
        entry |= {"dense_ms": None, "new_ms": None, "cost": None}
    (picture,) = plan_pictures([(row(plan), "separate")])
    titles = [column.title for column in picture.chart.columns]
    assert titles == ["error of the outputs", "MACs saved"] and "budget" not in picture.summary
    assert [cells["ms"] for cells in picture.layers] == ["–", "–"]
