"""Runs side by side: what each came to and what differs."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgewise.errors import RequestError
from edgewise.report.document import Report
from edgewise.report.side_by_side import differing_keys, draw_chart, named_reports, render_comparison, write_comparison


def words(page: str) -> str:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(page)
    return " ".join(" ".join(found).split())


def test_runs_are_called_by_their_recipe_unless_two_share_it(passing: Report, failing: Report, tmp_path: Path) -> None:
    for name, report in (("a", passing), ("b", failing), ("c", failing)):
        report.write(tmp_path / name)
    folders = [tmp_path / name for name in "abc"]
    assert [name for name, _ in named_reports(folders)] == ["passing", str(tmp_path / "b"), str(tmp_path / "c")]


def test_a_folder_twice_or_without_a_report_is_refused(passing: Report, tmp_path: Path) -> None:
    passing.write(tmp_path / "a")
    with pytest.raises(RequestError, match="one folder twice"):
        named_reports([tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(RequestError, match="give the folder that a run wrote"):
        named_reports([tmp_path / "a", tmp_path / "none"])


def test_every_line_of_every_run_stands_under_its_step(passing: Report, failing: Report, tmp_path: Path) -> None:
    path = write_comparison([("one", passing), ("two", failing)], tmp_path / "comparison.html")
    told = words(path.read_text(encoding="utf-8"))
    assert "onnx int8 one 97.22 −0.28" in told and "two 97.22 −0.28" in told
    assert "1.20×" in told and "top-1 fell by 14.17 points" in told
    table = told[told.index("Every step and every file") :]
    assert table.index("separate one") < table.index("onnx float32 one") < table.index("What was asked differently")


def test_what_was_asked_differently_is_told_field_by_field(passing: Report) -> None:
    recipe = {"name": "other", "limits": {"max_drop": 0.02}, "stages": [{"stage": "prune", "ratio": 0.5}]}
    other = replace(passing, recipe={**passing.recipe, **recipe}, environment={**passing.environment, "cpu": "Another"})
    told = words(render_comparison([("a", passing), ("b", other)]))
    assert "limits.max_drop – 0.02" in told and "stages[0].ratio – 0.5" in told and "name passing other" in told
    assert "cpu A processor Another" in told and "not comparable" in told
    same = words(render_comparison([("a", passing), ("b", passing)]))
    assert "not comparable" not in same and same.count("Nothing.") == 2


def test_differences_are_what_not_all_have_in_common() -> None:
    assert differing_keys([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"c": "4"}]) == [
        ("a", ["1", "1", "–"]),
        ("b", ["2", "3", "–"]),
        ("c", ["–", "–", "4"]),
    ]


def test_the_chart_holds_every_measured_file_in_its_run_s_colour(passing: Report, failing: Report) -> None:
    figure = draw_chart([("one", passing), ("two", failing)])
    assert figure is not None
    times, sizes = figure.panels
    assert len(times.marks) == len(sizes.marks) == 6 and times.upright == (1.0,)
    assert {mark.colour for mark in times.marks[:4]} == {figure.keys[0].colour} != {figure.keys[1].colour}
    assert [mark.fill for mark in times.marks[4:]] == ["crossed", "crossed"]
    assert draw_chart([("none", replace(passing, rows=passing.rows[:3]))]) is None
