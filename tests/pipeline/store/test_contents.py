"""What a store holds, and its trimming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgewise.__main__ import main
from edgewise.errors import RequestError
from edgewise.store.contents import bytes_of, list_entries, seconds_of, trim_store
from edgewise.store.entries import Key, Store, key_of

DAY = 86_400.0


def put(root: Path, number: int, size: int, days: float) -> Key:
    """An entry of ``size`` bytes, last used so many days ago."""
    key = key_of(kind="stage", stage={"stage": "prune", "number": number})

    def make(folder: Path, scratch: Path) -> None:
        (folder / "value").write_bytes(b"x" * size)

    path = Store(root).keep(key, make, seconds=float(number)).path
    (path / "entry.json").touch()
    os.utime(path, (time.time() - days * DAY,) * 2)
    return key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, (size, days) in enumerate([(1000, 1), (2000, 10), (4000, 40)]):
        put(tmp_path, number, size, days)
    return tmp_path


def test_entries_are_listed_with_what_they_are(root: Path) -> None:
    found = list_entries(root)
    assert [entry.what for entry in found] == ["stage prune"] * 3
    assert [entry.seconds for entry in found] == [0.0, 1.0, 2.0]
    assert all(size < entry.bytes < size + 400 for entry, size in zip(found, (1000, 2000, 4000), strict=True))
    assert list_entries(root / "none") == []


@pytest.mark.parametrize(
    ("keep", "older", "left"),
    [
        (None, 30 * DAY, [0.0, 1.0]),
        (None, 5 * DAY, [0.0]),
        (4000, None, [0.0, 1.0]),
        (1500, None, [0.0]),
        (0, None, []),
        (10**9, 100 * DAY, [0.0, 1.0, 2.0]),
        (10**9, 5 * DAY, [0.0]),
    ],
)
def test_the_least_recently_used_go(root: Path, keep: int | None, older: float | None, left: list[float]) -> None:
    removed = trim_store(root, keep, older)
    assert [entry.seconds for entry in list_entries(root)] == left
    assert sorted(left + [entry.seconds for entry in removed]) == [0.0, 1.0, 2.0]


USED = """
import sys, time
from pathlib import Path
from edgewise.store.entries import Store
store = Store(Path(sys.argv[1]))
store.keep(sys.argv[2], lambda folder, scratch: None)
print("used", flush=True)
time.sleep(60)
"""


def test_what_a_run_at_work_has_used_stays(root: Path) -> None:
    key = key_of(kind="stage", stage={"stage": "prune", "number": 2})
    run = subprocess.Popen([sys.executable, "-c", USED, str(root), key], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None and run.stdout.readline() == "used\n"
        assert [entry.seconds for entry in trim_store(root, 0, None)] == [0.0, 1.0]
        assert Store(root).find(key) is not None
    finally:
        run.kill()
        run.wait()
    assert [
        entry.seconds for entry in trim_store(root, 0, None)
    ] == []  # it was used a moment ago, before this process began
    os.utime(root / key, (time.time() - DAY,) * 2)
    assert [entry.seconds for entry in trim_store(root, 0, None)] == [2.0]


def test_what_a_run_at_work_has_used_stays_however_the_clock_is_set(root: Path) -> None:
    key = key_of(kind="stage", stage={"stage": "prune", "number": 2})
    run = subprocess.Popen([sys.executable, "-c", USED, str(root), key], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None and run.stdout.readline() == "used\n"
        os.utime(root / key, (time.time() - 9 * DAY,) * 2)  # as a clock that was set back would have it
        assert [entry.seconds for entry in trim_store(root, 0, 1.0)] == [0.0, 1.0]
        assert Store(root).find(key) is not None
    finally:
        run.kill()
        run.wait()


def test_a_room_of_another_host_is_lived_in_for_a_day_whatever_its_lock_says(root: Path) -> None:
    room = root / "partial" / "theirs"
    room.mkdir(parents=True)
    (room / ".lock").write_text("another-host", encoding="ascii")
    (room / ".uses").write_text(list_entries(root)[0].key, encoding="ascii")
    assert Store(root).sweep() == 0 and room.is_dir()
    for file in (room / ".lock", room / ".uses"):
        os.utime(file, (time.time() - 2 * DAY,) * 2)
    assert Store(root).sweep() == 1 and not room.exists()


def test_a_room_that_cannot_be_looked_into_is_lived_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, on a store that is shared."""
    room = root / "partial" / "theirs"
    room.mkdir(parents=True)
    (room / ".lock").touch()
    (room / ".uses").write_text(list_entries(root)[0].key, encoding="ascii")

    def refuse(path: Path, flags: int, *mode: int, **more: int) -> int:
        if Path(path) == room / ".lock":
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *mode, **more)

    really = os.open
    monkeypatch.setattr(os, "open", refuse)
    os.utime(room / ".lock", (time.time() + DAY,) * 2)
    assert [entry.seconds for entry in trim_store(root, 0, None)] == [1.0, 2.0]
    assert Store(root).sweep() == 0 and room.is_dir()


@pytest.mark.parametrize(
    ("text", "value"), [("10GB", 10**10), ("1.5 mb", 1_500_000), ("7", 7), ("2K", 2000), ("3b", 3)]
)
def test_sizes(text: str, value: int) -> None:
    assert bytes_of(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("30d", 30 * DAY), ("12h", 43_200.0), ("1.5 w", 10.5 * DAY), ("2m", 120.0)]
)
def test_ages(text: str, value: float) -> None:
    assert seconds_of(text) == value


@pytest.mark.parametrize("text", ["", "x", "10", "-3d", "3y", "d", "nan d", "1e9d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="wanted an age"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["", "x", "10PB", "-3GB", "GB", "nan", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="wanted a size"):
        bytes_of(text)


def test_the_command(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EDGEWISE_STORE", str(root))
    assert main(["store", "list"]) == 0
    assert capsys.readouterr().out.count("stage prune") == 3
    assert main(["store", "size"]) == 0
    assert "3 entries, 0.0 MB in" in capsys.readouterr().out.replace("\n", " ")
    assert main(["store", "trim"]) == 2
    assert "wants --keep SIZE" in capsys.readouterr().err
    assert main(["store", "list", "--keep", "1GB"]) == 2
    assert main(["store", "trim", "--older", "5d", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["what"] for entry in document["entries"]] == ["stage prune"] * 2 and document["store"] == str(root)
    assert len(list_entries(root)) == 1
