"""Storages and studies: what is refused, with the reason, and what is shared."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from edgewise.errors import RequestError
from edgewise.search import storage as storages
from edgewise.search import study as studies
from edgewise.search.alive import retry_trial
from edgewise.search.quantities import read_bound, read_objectives
from edgewise.search.storage import check_storage, hide_password, open_storage
from edgewise.search.study import Request, join_study, settings_of
from edgewise.targets import MissingBackend

optuna = pytest.importorskip("optuna")
IDENTITY = {"space": {"name": "s.py:a", "s.py": "1" * 64}, "objectives": ["top1", "latency"], "data": "d" * 64}


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {
        "name": "mine",
        "space": "s.py:a",
        "objectives": read_objectives(["top1", "latency"]),
        "trials": 5,
    }
    return Request(**given | {"identity": IDENTITY} | fields)


def test_a_journal_is_made_and_read_by_the_next(tmp_path: Path) -> None:
    study = join_study(open_storage(None, tmp_path / "new", retry_trial), request(), 2, [{"a": 1}], make=True)
    again = join_study(open_storage(None, tmp_path / "new", retry_trial), request(trials=9), 7, [{"a": 2}], make=True)
    assert [direction.name for direction in again.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.user_attrs[studies.WANTED] == 9 and settings_of(again)["threads"] == 2
    assert len(again.get_trials()) == 1  # what it begins with is put there once
    assert study.metric_names == ["top1", "latency"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": {"name": "s.py:a", "s.py": "2" * 64}}, "space was name s.py:a, s.py 1111111111…, is .* 2222222222…"),
        ({"objectives": ["top1"]}, "objectives was top1, latency, is top1"),
        ({"data": "e" * 64}, "data was dddddddddd…, is eeeeeeeeee…"),
        ({"weights": "f" * 64}, "weights was None, is ffffffffff…"),
    ],
)
def test_a_study_of_another_search_is_refused_by_what_differs_and_left_alone(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    study = join_study(open_storage(None, tmp_path, retry_trial), request(), 1, make=True)
    study.tell(study.ask(), [0.5, 0.5])
    before = (tmp_path / storages.JOURNAL).read_bytes()
    with pytest.raises(RequestError, match=f"another search.*{words}.*--name"):
        join_study(open_storage(None, tmp_path, retry_trial), request(identity=IDENTITY | change), 1, make=True)
    assert (tmp_path / storages.JOURNAL).read_bytes().startswith(before)
    assert len(study.get_trials()) == 1 and study.user_attrs[studies.WANTED] == 5


def test_a_study_that_nobody_here_made_is_refused(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path, retry_trial)
    optuna.create_study(study_name="mine", storage=storage)
    with pytest.raises(RequestError, match="holds a study that no edgewise search made"):
        join_study(storage, request(), 1, make=True)


def test_a_worker_has_nothing_to_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_WAIT", 0.0)
    with pytest.raises(RequestError, match="no search 'mine' in this storage to join"):
        join_study(open_storage(None, tmp_path, retry_trial), request(trials=None), 1, make=False)


@pytest.mark.parametrize(
    ("where", "workers", "words"),
    [
        ("sqlite:///x.db", 2, "serves one worker only: Optuna would never recommend SQLite for parallel optimization"),
        ("http://host/x", 1, "no study can be kept at http://"),
        ("redis://host", 1, "no study can be kept at redis://"),
    ],
)
def test_a_storage_that_cannot_do_is_refused(where: str, workers: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_storage(where, workers)
    check_storage("sqlite:///x.db", 1)
    check_storage(None, 8)


def test_a_missing_driver_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingBackend, match=r"needs psycopg.*\[search_postgresql\]"):
        check_storage("postgresql://me@host/x", 1)
    with pytest.raises(MissingBackend, match=r"optuna.*\[search\]"):
        storages.check_optuna()


def test_a_journal_that_cannot_be_kept_or_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RequestError, match="cannot keep a journal"):
        open_storage(str(tmp_path / "file" / "journal.log"), tmp_path, retry_trial)
    (tmp_path / "other.log").write_text("not json\nat all\n")
    with pytest.raises(RequestError, match=r"other\.log is no journal of a study"):
        open_storage(str(tmp_path / "other.log"), tmp_path, retry_trial)
    with pytest.raises(RequestError, match="cannot keep a journal"):
        open_storage(str(tmp_path), tmp_path, retry_trial)


def test_a_database_that_does_not_answer_is_told_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RequestError, match=r"postgresql://me:\*\*\*@127.0.0.1:\d+/x does not answer") as caught:
        open_storage(f"postgresql://me:secret@127.0.0.1:{port}/x", Path(), retry_trial)
    assert "secret" not in str(caught.value)


def test_passwords_are_hidden() -> None:
    assert hide_password("mysql://me:a@b@host/x") == "mysql://me:***@host/x"
    assert hide_password("postgresql://me@host/x") == "postgresql://me@host/x"
    assert hide_password("runs/journal.log") == "runs/journal.log"


def test_a_request_is_timed_where_anything_of_it_is() -> None:
    assert request().timed
    bytes_ = read_objectives(["top1", "bytes"])
    assert not request(objectives=bytes_).timed
    assert request(objectives=bytes_, limits=(read_bound("ms=5", "--limit"),)).timed
