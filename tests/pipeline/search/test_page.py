"""The page and the document of a search, from trials as a study tells them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgewise.commands.report import show_again
from edgewise.errors import RequestError
from edgewise.search.document import Choice, Document, read_document
from edgewise.search.page import draw_front, render_page, write_page
from edgewise.search.quantities import read_bound, read_objectives
from edgewise.search.records import Record
from edgewise.search.study import Request

OBJECTIVES = read_objectives(["top1", "latency", "bytes"])


def make_record(number: int, top1: float = 0.9, latency: float = 0.5, **fields: Any) -> Record:
    figures = {
        "top1": (top1, top1 - 0.02, top1 + 0.02),
        "latency": (latency, latency - 0.01, latency + 0.01),
        "bytes": (50_000.0, 50_000.0, 50_000.0),
    }
    given: dict[str, Any] = {
        "fate": "whole", "values": {"macs": 0.5, "scope": "<b>global</b>"}, "figures": figures, "excesses": {"drop=0.02": -0.1},
        "verdict": "pass", "precision": "int8", "seconds": 12.0, "recipe": f"def recipe():\n    return {number}\n",
        "uses": {"reused": 3, "reused_seconds": 30.0, "computed": 5, "computed_seconds": 10.0},
        "folder": f"trials/{number:04d}",
    }  # fmt: skip
    return Record(number=number, **given | fields)


def make_document(**fields: Any) -> Document:
    request = Request(
        name="mine",
        space="s.py:space",
        objectives=OBJECTIVES,
        limits=(read_bound("drop=0.02", "--limit"),),
        identity={"a": 1},
    )
    trials = [
        make_record(0),
        make_record(1, 0.95, 0.8),
        make_record(2, 0.97, 0.2, excesses={"drop=0.02": 0.4}, reason="drop is 0.028"),
        make_record(
            3, fate="stopped", figures={}, excesses={"run": 1.0}, rung="run", reason="prune: not faster", verdict="fail"
        ),
        make_record(4, fate="dropped", figures={}, reason="the recipe of trial 1"),
        make_record(5, fate="running", figures={}, verdict=""),
    ]
    choice = Choice(
        number=0, why="the lowest latency", verdict="pass", reason="", looked_at=4, figures={"top1": (0.89, 0.86, 0.92)}, images=540,
        file="best/artifacts/onnx/x.onnx", target="onnx", precision="int8",
    )  # fmt: skip
    given: dict[str, Any] = {
        "request": request, "settings": {"machine": "x86", "threads": 1, "began": 0.0}, "trials": trials,
        "importances": {"top1": {"macs": 0.75, "scope": 0.25}}, "choice": choice, "ended": "4 trials are finished",
        "storage": "runs/journal.log",
    }  # fmt: skip
    return Document(**given | fields)


def test_the_page_holds_the_front_its_recipes_and_what_luck_there_may_be() -> None:
    page = render_page(make_document())
    assert "Trial 0 is the choice, and passes on the test set" in page
    assert "one of 4 trials that were looked at" in page and "n = 540" in page
    assert 'href="trials/0001/report.html"' in page and 'href="best/recipe.py"' in page
    assert page.count("recipe as Python text, to copy") == 2  # of trials 0 and 1, the front
    assert "stopped: run" in page and "prune: not faster" in page and "drop is 0.028" in page
    assert "took 18 results from the store" in page and "optuna-dashboard runs/journal.log" in page
    assert "share in top1" in page and "75%" in page
    assert (
        "<b>global</b>" not in page and "scope &lt;b&gt;global&lt;/b&gt;</td>" in page
    )  # escaped, and nothing is fetched
    assert not re.search(r"""(src|href)=["']https?:""", page)


def test_the_front_is_drawn_once_for_each_other_objective() -> None:
    figure = draw_front(make_document())
    assert figure is not None and len(figure.panels) == 2
    fills = [(mark.shape, mark.fill) for mark in figure.panels[0].marks]
    assert fills == [("star", "solid"), ("circle", "solid"), ("circle", "crossed")]
    assert not figure.panels[0].lines  # of three objectives a panel shows two
    low, high = figure.panels[0].y.low, figure.panels[0].y.high
    assert low < 88 and high > 97  # the intervals of the front lie inside
    two = make_document(request=dataclasses.replace(make_document().request, objectives=OBJECTIVES[:2]))
    figure = draw_front(two)
    assert figure is not None and len(figure.panels[0].lines[0].points) == 2


@pytest.mark.parametrize(
    "fields",
    [{"trials": []}, {"choice": None, "ended": ""}, {"importances": {}, "choice": None, "ended": "the time is over"}],
)
def test_a_page_can_be_made_at_any_time(fields: dict[str, Any]) -> None:
    if "trials" in fields:
        fields = fields | {"choice": None}
    page = render_page(make_document(**fields))
    assert "No trial is within the limits yet" in page if not fields.get("trials", [1]) else "Every trial" in page


def test_the_document_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    document = make_document()
    document.write(tmp_path)
    again = read_document(tmp_path)
    assert again.to_json() == document.to_json()
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["kind"] == "search" and written["front"] == [1, 0] and written["best"]["looked_at"] == 4
    assert (written["finished"], written["feasible"]) == (4, 2)


def test_report_writes_the_page_of_a_search_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    document = make_document()
    document.write(tmp_path)
    write_page(document, tmp_path)
    before = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").unlink()
    assert show_again(Namespace(folders=[tmp_path], out=None, json=False, cyclonedx=False)) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert "Choice: trial 0" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [{"trials": 3}, {"objectives": [{}]}, {"best": {"number": "x"}}])
def test_a_damaged_document_is_told(spoil: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(make_document().to_json() | spoil), encoding="utf-8")
    with pytest.raises(RequestError, match=r"report\.json is no report of a search"):
        read_document(tmp_path)
