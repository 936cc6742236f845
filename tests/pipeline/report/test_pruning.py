"""What a pruning step tells of its budget, trials, scan and times is shown on the page, escaped."""

from __future__ import annotations

from typing import Any

from edgewise.report import pruning
from edgewise.report.document import Report
from edgewise.report.page import render_page
from edgewise.report.rows import Row

READING = {"top1": 0.9, "loss": 0.3}
FACTS: dict[str, Any] = {
    "budget": {
        "budget": "milliseconds",
        "on": "onnx",
        "threads": 1,
        "before": 2.0,
        "wanted": 1.0,
        "predicted": 0.98,
        "measured": 1.01,
        "trials": [{"predicted": 0.9, "measured": 1.2}, {"predicted": 0.98, "measured": 1.01}],
    },
    "accuracy_budget": {
        "max_drop": 0.01,
        "n": 100,
        "top1_before": 0.9,
        "trials": [
            {"part": 1.0, "outcome": "<b>too much", "drop": 0.2},
            {"part": 0.5, "outcome": "x", "drop": None},
            {"part": 0.25, "outcome": "y", "drop": 0.0},
        ],
    },
    "channel_sensitivity": {"conv<1>": {"0": READING, "0.5": {"top1": 0.5, "loss": 1.3}}},
    "latency_table": [
        {
            "layer": "Conv2d 16 to 16",
            "settings": {"input": [32, 32]},
            "layers": 18,
            "base_ms": 0.0,
            "ms_by_inputs": {"8": 0.1, "16": 0.2},
            "ms_by_outputs": {"16": 0.2},
        }
    ],
    "widths": {"conv<1>": [16, 8]},
    "reconstruction": {"conv<1>": [0.5, 0.25]},
    "norm_images": 1024,
    "left_alone": [{"layer": "conv<2>", "width": 16, "stay": 8, "reason": "they pass <roll>"}],
    "averaging_norms": ["norm<1>"],
}


def pruned(facts: dict[str, Any]) -> Row:
    return Row(
        step="prune", target=None, params=1, macs=1, bytes=1, accuracy=None, latency=None, verification=None,
        undelegated=(), verdict="pass", reason="", seconds=1.0, facts=facts,
    )  # fmt: skip


def test_removed_blocks_are_told_with_what_they_saved_and_lost() -> None:
    row = {"modules": ["a"], "residual": True, "saves": 0.125, "removed": 0, "rise": 0.5}
    stays = {"block": "c", "modules": ["c"], "residual": False, "saves": None, "removed": None, "rise": None}
    plan = {"blocks": [row | {"block": "<a>"}, stays], "whole_ms": 4.0, "wanted": 0.5, "measured": 0.48}
    part, errors = pruning.sections(
        [(pruned({"removed_blocks": plan, "reconstruction": {"b": [0.5, 0.2]}}), "removeblocks")]
    )
    assert part.title == "Blocks of removeblocks" and "answers are off" in errors.title
    assert "48.0% of 4.00 ms are left, 50.0% wanted." in part.html
    assert "<td>&lt;a&gt;</td><td>a shortcut</td><td>12.5%</td><td>went, number 1</td><td>0.5000</td>" in part.html
    assert "<td>c</td><td>nothing</td><td>–</td><td>stays</td><td>–</td>" in part.html
    named = pruning.sections([(pruned({"removed_blocks": plan | {"whole_ms": None}}), "removeblocks")])[0]
    assert "are left" not in named.html


def test_each_fact_has_its_part() -> None:
    parts = pruning.sections([(pruned(FACTS), "prune")])
    assert [part.title for part in parts] == [
        "Budget of prune",
        "Trials of prune",
        "What each layer's channels are worth (prune)",
        "What each width of a layer costs (prune)",
        "Channels before and after (prune)",
        "How far each layer's answers are off (prune)",
        "Layers left alone (prune)",
    ]
    html, figures = [part.html or "" for part in parts], [part.figure or {} for part in parts]
    assert "<td>+1.0%</td>" in html[0], "measured against wanted"
    assert "<td>+33.3%</td>" in html[0], "the first trial, measured against predicted"
    assert "&lt;b&gt;too much" in html[1] and "<td>-20.00</td>" in html[1] and "<td>+0.00</td>" in html[1]
    assert figures[2]["data"][0]["y"] == [90.0, 50.0] and figures[2]["data"][0]["name"] == "conv&lt;1&gt;"
    assert [line["x"] for line in figures[3]["data"]] == [[8, 16]]
    assert [bar["y"] for bar in figures[4]["data"]] == [[16], [8]]
    assert [(bar["name"], bar["y"]) for bar in figures[5]["data"]] == [
        ("as it was cut", [0.5]),
        ("fitted anew", [0.25]),
    ]
    assert "<td>conv&lt;2&gt;</td><td>8 of 16</td><td>they pass &lt;roll&gt;</td>" in html[6]
    assert "norm&lt;1&gt;.</p>" in html[6]


def test_a_counted_budget_has_no_trials() -> None:
    told = {"budget": {"budget": "macs", "wanted": 0.5, "before": 1000, "left": 480}}
    (part,) = pruning.sections([(pruned(told), "prune 2")])
    assert part.title == "Budget of prune 2" and "<td>48.0%</td>" in (part.html or "")


def test_other_steps_have_no_such_parts() -> None:
    assert pruning.sections([(pruned({"budget": 3, "plan": [], "sensitivity": []}), "separate")]) == []


def test_the_page_shows_them_once_and_the_rest_beside_the_files() -> None:
    page = render_page(Report(recipe={}, environment={}, rows=[pruned(FACTS)]))
    assert "What each layer" in page and "Budget of prune" in page
    assert "conv<1>" not in page and "latency_table" not in page
    assert "norm_images" in page
