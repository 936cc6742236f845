"""What a log says of long work."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from edgewise.report import watch
from edgewise.report.pace import Pace, duration_text
from edgewise.report.watch import Watch


def listening() -> tuple[Watch, io.StringIO]:
    heard = Watch()
    text = io.StringIO()
    heard.console = Console(file=text, width=200)
    return heard, text


def test_pace_tells_share_rate_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    pace = Pace(total=8, count=80, done=2, started=100.0)
    assert str(pace) == "25% after 10 s, 2.00 images/s, about 30 s left"
    assert str(Pace(total=8, done=2, started=100.0)) == "25% after 10 s, about 30 s left"


def test_durations() -> None:
    assert [duration_text(seconds) for seconds in (4.2, 99, 150, 5_999, 9_000)] == [
        "4 s",
        "99 s",
        "2 min",
        "100 min",
        "2.5 h",
    ]


def test_a_log_says_the_rate_and_the_rest_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heard, text = listening()
    seen = []
    for item in heard.track("abcd", "onnx: testing", 4, count=40):
        seen.append(item)
        now[0] += 15.0
    assert seen == list("abcd")
    assert text.getvalue().splitlines() == [
        "  onnx: testing",
        "  onnx: testing: 50% after 30 s, 0.667 images/s, about 30 s left",
        "  onnx: testing: 40 images in 60 s, 0.667 images/s",
    ]


def test_short_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, text = listening()
    assert list(heard.track([1, 2], "fitting", 2)) == [1, 2]
    assert list(heard.track([1], "unknown")) == [1]
    assert text.getvalue() == "  fitting\n"
    assert watch._SECONDS_BETWEEN > 1
