"""``edgewise report``: one run again, several side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewise.__main__ import main
from edgewise.report.document import Report


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two folders with a report each: one that passed, one that failed."""
    text = (Path(__file__).parent / "report.json").read_text(encoding="utf-8")
    for name, verdict in (("good", "pass"), ("bad", "fail")):
        document = json.loads(text)
        document["recipe"]["name"] = name
        document["rows"][1]["verdict"] = verdict
        Report.from_json(document).write(tmp_path / name)
    return [str(tmp_path / "good"), str(tmp_path / "bad")]


def test_several_runs_go_onto_one_page(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *folders]) == 1, "one of them failed"
    out = capsys.readouterr().out
    page = tmp_path / "good" / "comparison.html"
    assert "✓ good: " in out and "✗ bad: 1 of 2 checks failed" in out and out.rstrip().endswith(str(page))
    assert "good" in page.read_text(encoding="utf-8")
    assert main(["report", *folders, "--json", "--out", str(tmp_path / "x.html")]) == 1
    assert set(json.loads(capsys.readouterr().out)["runs"]) == {"good", "bad"} and (tmp_path / "x.html").is_file()


def test_one_run_keeps_its_own_page(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", folders[0]]) == 0
    assert (tmp_path / "good" / "report.html").is_file() and "Report: " in capsys.readouterr().out
    assert main(["report", folders[0], "--out", "x.html"]) == 2
    assert "of several runs" in capsys.readouterr().err


def test_a_folder_without_a_report_is_named(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", folders[0], "nowhere"]) == 2
    assert "cannot read nowhere/report.json" in capsys.readouterr().err
