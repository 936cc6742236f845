"""``edgewise search`` as a person calls it: one small search whole, and each wrong request."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.__main__ import main
from edgewise.catalogue import find_recipe
from edgewise.search import session

optuna = pytest.importorskip("optuna")

SPACE = """
import dataclasses
from edgewise import Augment, Finetune, Fold, Limits, Prune, Quantize, Recipe, Train, Training

PLAIN = Augment(crop=0, flip=False)


def small(trial):
    kept = trial.suggest_float("channels", 0.5, 0.9, step=0.1)
    recover = Training(epochs=1, lr=0.02, batch_size=64, distill=0.5, augment=PLAIN)
    return Recipe(
        name="small", model="tiny_resnet", data="digits",
        baseline=Train(training=Training(epochs=2, lr=0.05, batch_size=64, augment=PLAIN)),
        stages=(Prune(channels=kept), Finetune(training=recover), Fold()),
        targets=("onnx",), limits=Limits(max_drop=0.9, max_latency_ratio=50, max_step_ratio=50, min_agreement=0.9),
    )


def dictionary(trial):
    return {"channels": trial.suggest_float("channels", 0.5, 0.9)}


def other_data(trial):
    return dataclasses.replace(small(trial), data="imagefolder:/nowhere")


def too_small(trial):
    trial.suggest_float("x", 0, 1)
    return Prune(channels=2.0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "space.py").write_text(SPACE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    return tmp_path


def search(*arguments: str) -> int:
    return main(["search", *arguments, "--out", "out"])


def test_a_search_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("space.py:small", "--trials", "2", "--objective", "top1", "--objective", "bytes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] == 2 and document["ended"] == "2 trials are finished"
    assert document["reuse"]["reused"] > 0  # the second trial did not train the baseline again
    # A repeated recipe is not run, and uses nothing.
    first, second = (trial["uses"] for trial in document["trials"] if trial["uses"])
    assert first["computed"] > second["computed"] and second["reused"] > first["reused"]

    best, out = document["best"], folder / "out"
    chosen = json.loads((out / "best" / "report.json").read_text(encoding="utf-8"))
    row = next(row for row in chosen["rows"] if row["step"] == "artifact")
    assert row["accuracy"]["n"] == best["images"] == 540
    card = json.loads(next((out / "best" / "artifacts").rglob("*.card.json")).read_text(encoding="utf-8"))
    assert card["search_trials"] == 2 and card["test_set_looks"] > 0
    usage = next((out / "best" / "artifacts").rglob("*.md")).read_text(encoding="utf-8")
    assert "The choice of 2 trials" in usage

    trial = json.loads((out / "trials" / "0000" / "report.json").read_text(encoding="utf-8"))
    assert trial["rows"][-1]["accuracy"]["n"] == 180  # calibration images, never the test set
    card = json.loads(next((out / "trials" / "0000" / "artifacts").rglob("*.card.json")).read_text(encoding="utf-8"))
    assert card["search_trials"] == card["test_set_looks"] == 0
    assert (out / "trials" / "0000" / "report.html").is_file() and (out / "report.html").is_file()

    recipe = json.loads(json.dumps(find_recipe("out/best/recipe.py:recipe").describe()))
    assert all(recipe[name] == chosen["recipe"][name] for name in ("name", "stages", "baseline", "limits", "targets"))
    assert search("space.py:small", "--trials", "2", "--objective", "top1", "--objective", "latency") == 2
    assert (
        "another search, whose figures cannot be laid beside these: objectives was top1, bytes"
        in capsys.readouterr().err
    )
    (folder / "space.py").write_text(SPACE.replace("epochs=1", "epochs=2"), encoding="utf-8")
    assert search("space.py:small", "--objective", "top1", "--objective", "bytes") == 2
    assert "space was name space.py:small" in capsys.readouterr().err
    assert main(["report", "out", "--json"]) == 0  # nothing was lost
    assert json.loads(capsys.readouterr().out)["finished"] == 2


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["space.py:dictionary"], "returned dict; a space takes a trial and returns an edgewise.Recipe"),
        (["space.py:too_small"], "makes no recipe: of 20 sets of values the last says: Prune.channels must lie in"),
        (["space.py:other_data"], "/nowhere"),
        (["space.py:smal"], "has no function 'smal'; it defines: small, dictionary, other_data, too_small"),
        (["space.py"], "which function?"),
        (["nospace"], "unknown space 'nospace'"),
        (["space.py:small", "--objective", "speed"], "unknown objective 'speed'"),
        (["space.py:small", "--objective", "latency@xnnpack"], "is of a target that the recipe writes no file for"),
        (["space.py:small", "--limit", "drop"], "--limit: wanted NAME=NUMBER"),
        (["space.py:small", "--trials", "0"], "--trials: wanted 1 or more, found 0"),
        (["space.py:small", "--workers", "2", "--storage", "sqlite:///x.db"], "Optuna would never recommend SQLite"),
        (["space.py:small", "--worker", "--storage", "sqlite:///x.db"], "Optuna would never recommend SQLite"),
        (["space.py:small", "--storage", "ftp://x"], "no study can be kept at ftp://"),
        (["space.py:small", "--timeout", "soon"], "--timeout: wanted a time above 0, as 900, 15m or 8h, found 'soon'"),
        (["space.py:small", "--model", "resnet2"], "resnet2"),
    ],
)
def test_a_wrong_request_is_told_and_nothing_is_run(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not list((folder / "out").glob("*"))


def test_a_refused_request_leaves_others_journals_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = folder / "shared.log"
    journal.touch()
    assert search("space.py:dictionary", "--storage", str(journal)) == 2
    assert journal.is_file()


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1), (5, 1)])
def test_workers_compute_with_no_more_threads_than_processors(
    workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "processors", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert session._threads(workers) == threads


def test_a_database_that_does_not_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg")
    where = f"postgresql://me:secret@127.0.0.1:{closed_port()}/x"
    assert search("space.py:small", "--storage", where) == 2
    told = capsys.readouterr().err
    assert "does not answer" in told and "secret" not in told


def test_a_folder_of_a_run_is_left_to_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text('{"recipe": {}}', encoding="utf-8")
    assert search("space.py:small") == 2
    assert "out holds a run" in capsys.readouterr().err


def test_spaces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "spaces", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)["spaces"]]
    assert names[:2] == ["demo", "quantize_only"]


@pytest.mark.parametrize("arguments", [["nospace"], ["demo", "--storage", "ftp://x"], ["demo", "--data", "digit"]])
def test_wrong_words_are_told_before_torch_is_loaded(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgewise.__main__ import main\nassert main(['search', *sys.argv[1:]]) == 2\n"
        "assert not {'torch', 'optuna'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
