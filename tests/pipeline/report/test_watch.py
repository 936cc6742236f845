"""What a person sees of a run: its place, whether it was computed, the time left, and the log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgewise.errors import RequestError
from edgewise.report import watch as module
from edgewise.report.document import Report
from edgewise.report.watch import Watch


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float


def test_every_row_tells_its_place_and_whether_it_was_computed(
    passing: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Watch()
    seen.plan(["Model: tiny"], [Step("baseline", 0.0), Step("prune", 0.0)])
    seen.row(passing.rows[0])
    seen.say("prune …")
    seen.row(passing.rows[1])
    seen.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Model: tiny"
    assert lines[1].startswith("✓ 1 of 2  baseline: top-1 97.50") and lines[1].endswith("12 s, from the store")
    assert lines[3].startswith("– 2 of 2  prune") and lines[3].endswith("12 s")


def test_without_a_plan_a_row_tells_neither(passing: Report, capsys: pytest.CaptureFixture[str]) -> None:
    Watch().row(passing.rows[0])
    assert capsys.readouterr().err.startswith("✓ baseline: ")


def test_the_time_left_is_the_plan_s_and_what_it_left_out_until_now(
    passing: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 s were planned for the first step and it took 20: 10 beyond, for each of two rows to come, and 65 planned."""
    seen = Watch()
    seen.plan([], [Step("baseline", 10.0), Step("prune", 60.0), Step("onnx", 5.0)])
    began = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: began + 20)
    seen.row(passing.rows[0])
    seen.close()
    assert "about 85 s left" in capsys.readouterr().err


def test_a_log_holds_every_line_with_its_time_and_no_markup(passing: Report, tmp_path: Path) -> None:
    seen = Watch(quiet=True, log=tmp_path / "new" / "run.log")
    seen.say("prune [1]")
    seen.detail("cutting")
    seen.row(passing.rows[0])
    seen.close()
    lines = (tmp_path / "new" / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines[:2]] == ["prune [1]", "  cutting"]
    assert lines[2][20:].startswith("✓ baseline: top-1 97.50") and "[dim]" not in lines[2] and "[green]" not in lines[2]


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RequestError, match="--log"):
        Watch(log=tmp_path / "taken" / "run.log")


def test_long_silence_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    seen = Watch()
    seen.plan([], [])
    seen.say("training …")
    deadline = time.monotonic() + 20
    said = ""
    while "still training" not in said and time.monotonic() < deadline:
        time.sleep(0.2)
        said += capsys.readouterr().err
    seen.close()
    assert "… still training" in said


@pytest.mark.parametrize("slow", [False, True])
def test_what_is_begun_is_told_in_a_log_only_where_it_takes_a_while(
    slow: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 0.1 if slow else 3600.0)
    seen = Watch()
    seen.begin("reading images")
    deadline, said = time.monotonic() + (20 if slow else 0.6), ""
    while "reading images" not in said and time.monotonic() < deadline:
        time.sleep(0.1)
        said += capsys.readouterr().err
    seen.close()
    assert said == ("  reading images …\n" if slow else "")
