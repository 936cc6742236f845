"""``compare`` on two runs and two files: exit status, table, JSON and Markdown."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewise.__main__ import main
from edgewise.measure.values import Accuracy, Difference, Latency
from edgewise.report.document import Report
from edgewise.report.outcomes import Outcomes
from edgewise.report.rows import ArtifactFile, Row
from edgewise.verify import card, comparison, manifest

N = 2_000


def artifact(right: int, ratio: float = 0.5, size: int = 1_000, target: str = "onnx") -> Row:
    same = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    timed = Latency(
        on=target,
        batch=1,
        threads=1,
        p50_ms=ratio,
        p90_ms=ratio,
        ratio_to_baseline=ratio,
        ci95=(ratio * 0.99, ratio * 1.01),
    )
    return Row(
        step="artifact", target=target, params=1, macs=1, bytes=size,
        accuracy=Accuracy(top1=right / N, n=N, ci95=(0.0, 1.0), vs_baseline=same), latency=timed, verification="runtime",
        undelegated=(), verdict="pass", reason="", seconds=0.0, precision="int8",
    )  # fmt: skip


def run_folder(folder: Path, *rows: Row, cpu: str = "a", outcomes: bool = True) -> Path:
    """A run's folder whose files tell the first so many images right."""
    folder.mkdir()
    files = [ArtifactFile(target=str(r.target), path=f"{i}.onnx", sha256="", bytes=1) for i, r in enumerate(rows)]
    Report(recipe={}, environment={"cpu": cpu}, rows=list(rows), artifacts=files).write(folder)
    if outcomes:
        kept = Outcomes(data="d", labels=np.ones(N, dtype=np.int32))
        for row in rows:
            assert row.accuracy is not None
            kept.given[f"{row.target} int8"] = (np.arange(N) < row.accuracy.top1 * N).astype(np.int32)
        kept.write(folder)
    return folder


def words(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(f["file"], one["quantity"]): one["word"] for f in document["files"] for one in f["compared"]}


def compare(capsys: pytest.CaptureFixture[str], a: Path, b: Path, *more: str) -> tuple[int, Any]:
    status = main(["compare", str(a), str(b), "--json", *more])
    return status, json.loads(capsys.readouterr().out)


def test_a_run_and_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_folder(tmp_path / "a", artifact(1_900))
    status, found = compare(capsys, one, one / "report.json")
    assert status == 0 and found["verdict"] == "not worse"
    assert words(found) == {
        ("onnx int8", "top-1"): "same", ("onnx int8", "time"): "cannot tell", ("onnx int8", "size"): "same",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "quantity", "word"),
    [
        ({"right": 1_850}, "top-1", "worse"),
        ({"right": 1_950}, "top-1", "better"),
        ({"ratio": 0.55}, "time", "slower"),
        ({"ratio": 0.45}, "time", "faster"),
        ({"size": 1_011}, "size", "larger"),
        ({"size": 900}, "size", "smaller"),
    ],
)
def test_one_thing_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], quantity: str, word: str
) -> None:
    a = run_folder(tmp_path / "a", artifact(1_900))
    b = run_folder(tmp_path / "b", artifact(**{"right": 1_900} | change))
    status, found = compare(capsys, a, b)
    assert words(found)["onnx int8", quantity] == word
    assert status == int(word in ("worse", "slower", "larger")) and found["verdict"] == (
        "worse" if status else "not worse"
    )


def test_limits_are_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", artifact(1_900))
    b = run_folder(tmp_path / "b", artifact(1_850, size=1_011))
    assert compare(capsys, a, b, "--max-drop", "0.05", "--max-growth", "0.02")[0] == 0


def test_a_target_that_is_gone_and_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", artifact(1_900), artifact(1_900, target="xnnpack"))
    b = run_folder(tmp_path / "b", artifact(1_900), artifact(1_900, target="coreml"))
    status, found = compare(capsys, a, b)
    assert status == 1
    assert words(found)["xnnpack int8", "file"] == "missing" and words(found)["coreml int8", "file"] == "new"


def test_without_outcomes_and_on_other_machines_less_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run_folder(tmp_path / "a", artifact(1_900), outcomes=False)
    b = run_folder(tmp_path / "b", artifact(1_890, ratio=0.9), cpu="other")
    status, found = compare(capsys, a, b)
    assert status == 0
    assert words(found)["onnx int8", "top-1"] == words(found)["onnx int8", "time"] == "cannot tell"
    assert "different machines" in json.dumps(found) and "images each would decide" in json.dumps(found)


def test_markdown_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run_folder(tmp_path / "a", artifact(1_900)), run_folder(tmp_path / "b", artifact(1_850))
    assert main(["compare", str(a), str(b), "--markdown"]) == 1
    text = capsys.readouterr().out
    assert "**worse**" in text.splitlines()[0] and "| onnx int8 | top-1 | **worse** | -2.50 points" in text
    assert main(["compare", str(a), str(b)]) == 1
    assert "is worse than" in capsys.readouterr().out


@contextlib.contextmanager
def here(make: Callable[..., Any], *arguments: Any, what: str) -> Iterator[Any]:
    """In place of a process of its own."""
    yield make(*arguments)


@pytest.mark.parametrize("change", ["longer", "pipe", "folder", "no list", "deep card"])
def test_a_file_that_is_not_what_its_run_wrote_is_not_opened(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was opened")

    for name in ("call_remotely", "open_isolated"):
        monkeypatch.setattr(comparison, name, refuse)
    path = tmp_path / "a.onnx"
    path.write_bytes(b"12345")
    card.path_of(path).write_text("{}", encoding="utf-8")
    manifest.write(path, "")
    if change == "longer":
        path.write_bytes(b"123456")
    elif change == "no list":
        manifest.path_of(path).unlink()
    elif change == "deep card":
        card.path_of(path).write_text("[" * 50_000, encoding="utf-8")
        manifest.write(path, "")
    else:
        path.unlink()
        os.mkfifo(path) if change == "pipe" else path.mkdir()
    assert main(["compare", str(path), str(path)]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and path.name in said


def test_files_are_timed_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = SimpleNamespace(
        target="onnx", row=artifact(1_900), data_digest="d", input_shape=(1, 8, 8), fed="normalised", seed=0
    )
    monkeypatch.setattr(comparison.card, "read", lambda path: kept)
    monkeypatch.setattr(comparison.targets, "get", lambda name: name)
    cost = {"a.onnx": 400, "b.onnx": 2_000}
    monkeypatch.setattr(
        comparison, "open_runtime", lambda target, path, threads: lambda image: sum(range(cost[path.name]))
    )
    monkeypatch.setattr(comparison, "refuse_without_runtime", lambda target, path: None)
    monkeypatch.setattr(comparison, "call_remotely", here)
    for name in cost:
        (tmp_path / name).write_bytes(b"12345")
        card.path_of(tmp_path / name).write_text("{}", encoding="utf-8")
        manifest.write(tmp_path / name, "")
    status, found = compare(capsys, tmp_path / "a.onnx", tmp_path / "b.onnx", "--seconds", "0.3")
    assert status == 1
    told = words(found)
    assert (told["onnx int8", "time"], told["onnx int8", "size"]) == ("slower", "same")
    assert told["onnx int8", "top-1"] == "cannot tell"  # two cards of the same data, by two shares of 2,000 images
    assert main(["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--seconds", "0"]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--markdown", "--json"], "exclude each other"),
        (["--data", "digits"], "two runs have kept"),
        (["--max-drop", "-1"], "max_drop must be 0 or more"),
        (["--seconds", "nan"], "seconds must be 0 or more"),
        (["--threads", "0"], "at least 1 thread"),
    ],
)
def test_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str) -> None:
    one = run_folder(tmp_path / "a", artifact(1_900))
    assert main(["compare", str(one), str(one), *more]) == 2
    assert words in capsys.readouterr().err


def test_what_is_neither_a_run_nor_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_folder(tmp_path / "a", artifact(1_900))
    (tmp_path / "file.onnx").touch()
    assert main(["compare", str(one), str(tmp_path / "none")]) == 2
    assert main(["compare", str(one), str(tmp_path / "file.onnx")]) == 2
    assert "found a run and" in capsys.readouterr().err
    empty = run_folder(tmp_path / "empty")
    assert main(["compare", str(empty), str(empty)]) == 2


def test_a_row_without_a_file_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = dataclasses.replace(artifact(1_900, target="coreml"), bytes=None)
    a, b = run_folder(tmp_path / "a", artifact(1_900)), run_folder(tmp_path / "b", artifact(1_900))
    Report(
        recipe={},
        environment={},
        rows=[lost, artifact(1_900)],
        artifacts=[ArtifactFile(target="onnx", path="0.onnx", sha256="", bytes=1)],
    ).write(b)
    status, found = compare(capsys, a, b)
    assert status == 0 and set(words(found)) == {("onnx int8", q) for q in ("top-1", "time", "size")}
