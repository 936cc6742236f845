"""Which runtime is chosen of int8 files that were timed side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.studies.architectures import __main__ as command
from edgewise.studies.architectures import choice
from edgewise.studies.architectures.choice import choose_runtimes, describe_choices
from edgewise.studies.architectures.supervise import Worker


def file(ratio: float, error: float, half: float = 0.01) -> dict[str, Any]:
    distance = {"error": error, "same": 4, "images": 4}
    return {"ratio": ratio, "ci95": [ratio - half, ratio + half], "p50_ms": ratio, "distance": distance}


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({}, []),
        ({"one": file(0.5, 0.1)}, ["one"]),
        ({"one": file(0.5, 0.1), "two": file(0.4, 0.1)}, ["two"]),
        # The fastest is 1.26 times as far from float as the nearest, then 1.25 times.
        ({"one": file(0.5, 0.100), "two": file(0.4, 0.126)}, ["one"]),
        ({"one": file(0.5, 0.100), "two": file(0.4, 0.125)}, ["two"]),
        # 0.49 to 0.51 and 0.505 to 0.525 overlap; 0.52 to 0.54 and 0.49 to 0.51 do not.
        ({"one": file(0.50, 0.1), "two": file(0.515, 0.1)}, ["one", "two"]),
        ({"one": file(0.50, 0.1), "two": file(0.530, 0.1)}, ["one"]),
    ],
)
def test_the_fastest_of_what_is_equally_near(files: dict[str, Any], chosen: list[str]) -> None:
    assert choose_runtimes({"files": files}) == chosen


def test_the_table_by_hand() -> None:
    kept = {
        "files": {"a": file(0.5, 0.1), "b": file(0.25, 0.5)},
        "refused": {"c": "no_kernel"},
        "float_ms": 2.0,
        "machine": "m",
    }
    text = describe_choices({"net": kept, "bad": {"failed": "it | broke"}}, {"net": True, "bad": False})
    assert "| architecture | float ONNX | a | b | choose |" in text
    assert "| net | 2 ms | 0.50× (0.49–0.51), 10 % | 0.25× (0.24–0.26), 50 % | a |" in text
    assert "| bad † | failed: it \\| broke |  |  |  |" in text
    assert "Chosen, of 1 architectures: a 1, b 0. On m." in text
    assert describe_choices({}, {}) == ""


def test_a_runtime_that_refused_is_told_where_it_has_a_column() -> None:
    first = {"files": {"a": file(0.5, 0.1), "b": file(0.6, 0.1)}, "refused": {}, "float_ms": 1.0, "machine": "m"}
    second = {"files": {"a": file(0.5, 0.1)}, "refused": {"b": "no_kernel"}, "float_ms": 1.0, "machine": "m"}
    third = {**second, "refused": {}}
    text = describe_choices({"x": first, "y": second, "z": third}, dict.fromkeys("xyz", True))
    assert "| y | 1 ms | 0.50× (0.49–0.51), 10 % | failed: no\\_kernel | a |" in text
    assert "| z | 1 ms | 0.50× (0.49–0.51), 10 % | – | a |" in text


def test_the_session_compares_and_a_fresh_clone_takes_it_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    docs = tmp_path / "docs"
    arguments = ["lenet5", "--target", "onnx", "--precision", "int8", "--docs", str(docs), "--together"]
    assert command.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert "lenet5 side by side: onnx " in capsys.readouterr().err.replace("xnnpack", "onnx")
    (kept,) = json.loads((docs / "architectures.json").read_text(encoding="utf-8"))["together"]
    assert kept["model"] == "lenet5" and kept["files"]["onnx"]["distance"]["error"] < 0.5
    assert all(
        found["ratio"] > 0 and found["ci95"][0] <= found["ratio"] <= found["ci95"][1]
        for found in kept["files"].values()
    )
    text = (docs / "architectures.md").read_text(encoding="utf-8")
    assert "## int8 in every runtime, side by side" in text and choose_runtimes(kept)[0] in text
    assert command.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert "side by side:" not in capsys.readouterr().err
    assert (docs / "architectures.md").read_text(encoding="utf-8") == text
    assert choice.ALIKE > 1


def test_a_comparison_that_failed_is_tried_again_on_demand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Worker, "do", lambda self, *arguments: {"failed": "TargetError: broke"})
    arguments = ["lenet5", "--target", "onnx", "--precision", "int8", "--together"]
    arguments += ["--out", str(tmp_path), "--docs", str(tmp_path)]
    told = []
    for more in ([], [], ["--again"]):
        command.main([*arguments, *more])
        told.append("side by side: TargetError: broke" in capsys.readouterr().err)
    assert told == [True, False, True]
