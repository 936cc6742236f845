"""Store: an entry is whole or absent, whatever kills the run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgewise.errors import StoreError
from edgewise.store import entries
from edgewise.store.entries import Store, file_digest, key_of
from edgewise.store.uses import count_uses
from edgewise.store.whole import copy_whole, write_whole

KEY = key_of(a=1)

KILLED = """
import os, signal, sys
from pathlib import Path
from edgewise.store.entries import Store
def make(folder, scratch):
    (folder / "half").write_text("half")
    (scratch / "epoch").write_text("3")
    os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1])).keep(sys.argv[2], make)
"""


def make(folder: Path, scratch: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "value.txt").write_text("7")


def never(folder: Path, scratch: Path) -> None:
    raise AssertionError("computed again")


def test_keep_then_find(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    assert kept.find(KEY) is None
    first = kept.keep(KEY, make)
    again = kept.keep(KEY, never)
    assert first.fresh and not again.fresh
    assert again.path == tmp_path / KEY and again.seconds == first.seconds
    assert (again.path / "sub" / "value.txt").read_text() == "7"


def test_seconds_may_be_given(tmp_path: Path) -> None:
    Store(tmp_path).keep(KEY, make, seconds=12.5)
    found = Store(tmp_path).find(KEY)
    assert found is not None and found.seconds == 12.5


def test_an_exception_leaves_no_entry_but_the_scratch(tmp_path: Path) -> None:
    kept = Store(tmp_path)

    def fails(folder: Path, scratch: Path) -> None:
        (folder / "half").write_text("half")
        (scratch / "epoch").write_text("3")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        kept.keep(KEY, fails)
    assert kept.find(KEY) is None
    assert [path for path in (tmp_path / "partial").rglob("*") if path.name != ".lock" and path.is_file()] == []

    def goes_on(folder: Path, scratch: Path) -> None:
        (folder / "from").write_text((scratch / "epoch").read_text())

    assert (kept.keep(KEY, goes_on).path / "from").read_text() == "3"
    assert not (tmp_path / "scratch" / KEY).exists()


def test_a_killed_process_leaves_no_entry_and_no_lock(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), KEY], cwd=Path(entries.__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL
    kept = Store(tmp_path)
    assert kept.find(KEY) is None
    assert (tmp_path / "scratch" / KEY / "epoch").read_text() == "3"
    entry = kept.keep(KEY, make)
    assert entry.fresh and not (entry.path / "half").exists()


def test_the_scratch_of_one_killed_after_its_result_was_kept_goes(tmp_path: Path) -> None:
    store, key = Store(tmp_path), key_of(kind="a")
    store.keep(key, make)
    scratch = tmp_path / "scratch" / key
    scratch.mkdir()
    (scratch / "state").write_text("1", encoding="utf-8")
    assert not store.keep(key, never).fresh and not scratch.exists()


def test_the_scratch_of_a_result_that_is_kept_goes_at_the_next_start(tmp_path: Path) -> None:
    """Nobody may ask for that result by ``keep`` again. What another process works on stays."""
    store, key, other = Store(tmp_path), key_of(kind="a"), key_of(kind="b")
    for each in (key, other):
        store.keep(each, make)
        (tmp_path / "scratch" / each).mkdir()
    (tmp_path / "scratch" / KEY).mkdir()  # of one that goes on
    with entries._locked_file(tmp_path / "scratch" / f"{other}.lock"):
        store.sweep()
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir() if path.is_dir()) == sorted([other, KEY])


def test_what_killed_processes_left_is_swept_at_once_and_what_living_ones_do_is_not(tmp_path: Path) -> None:
    for _ in range(3):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), KEY], cwd=Path(entries.__file__).parent.parent)
    assert len(list((tmp_path / "partial").iterdir())) == 3
    kept = Store(tmp_path)
    ours = kept.aside(KEY)
    assert kept.sweep() == 3
    assert list((tmp_path / "partial").iterdir()) == [ours.parent] and kept.sweep() == 0


def test_another_thread_count_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    parts = {"kind": "stage", "stage": {"stage": "prune", "ratio": 0.3}, "threads": 2, "versions": {"torch": "2.13"}}
    kept = Store(tmp_path)
    kept.keep(key_of(**parts), make, note=told.append)
    assert told == []
    kept.keep(key_of(**parts | {"threads": 1}), make, note=told.append)
    kept.keep(key_of(**parts | {"threads": 1, "versions": {"torch": "2.14"}}), make, note=told.append)
    kept.keep(key_of(**parts | {"stage": {"stage": "prune", "ratio": 0.4}}), make, note=told.append)
    assert told == ["not reused: threads 1, was 2", "not reused: torch 2.14, was 2.13"]


@pytest.mark.parametrize("damage", ["changed", "missing", "record cut", "record gone", "record empty"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    kept = Store(tmp_path)
    path = kept.keep(KEY, make).path
    value, entry = path / "sub" / "value.txt", path / "entry.json"
    if damage == "changed":
        value.write_text("8")
    elif damage == "missing":
        value.unlink()
    elif damage == "record cut":
        entry.write_text(entry.read_text()[:30])
    elif damage == "record gone":
        entry.unlink()
    else:
        entry.write_text("{}")
    assert kept.keep(KEY, make).fresh
    assert value.read_text() == "7"


def test_a_key_differs_for_any_part() -> None:
    parts = {"model": "net", "seed": 0, "stage": {"lr": 0.1, "names": ["a", "b"]}}
    others = [
        parts | {"model": "net2"},
        parts | {"seed": 1},
        parts | {"stage": {"lr": 0.1000001, "names": ["a", "b"]}},
        parts | {"stage": {"lr": 0.1, "names": ["b", "a"]}},
        parts | {"more": None},
    ]
    keys = [key_of(**p) for p in (parts, *others)]
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)
    assert key_of(b=2, a=1) == key_of(a=1, b=2)


def test_a_key_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        key_of(lr=float("nan"))


def test_a_folders_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = file_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = file_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, file_digest(tmp_path)}) == 3


def _slow(folder: Path, scratch: Path) -> None:
    with (folder.parents[2] / "count").open("a") as file:
        file.write("x")
    time.sleep(0.2)
    make(folder, scratch)


def _keep_slowly(root: Path) -> None:
    Store(root).keep(KEY, _slow)


def test_processes_side_by_side_compute_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_keep_slowly, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, seconds: float, name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(entries, "_seal_entry", full)
        with pytest.raises(StoreError, match=r"No space left.*run the same command again"):
            Store(tmp_path).keep(KEY, make)
    assert Store(tmp_path).find(KEY) is None
    assert Store(tmp_path).keep(KEY, make).fresh


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="EDGEWISE_STORE"):
        Store(tmp_path / "file").keep(KEY, make)


def test_aside_is_empty_every_time(tmp_path: Path) -> None:
    folder = Store(tmp_path).aside(KEY)
    (folder / "left").write_text("")
    assert list(Store(tmp_path).aside(KEY).iterdir()) == []


def test_write_whole_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"

    def fails(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError, match="free some space"):
        write_whole(path, b"three")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_kept_files_have_the_modes_of_new_files_whoever_wrote_them(tmp_path: Path, mask: int) -> None:
    def private(folder: Path, scratch: Path) -> None:
        (folder / "value").touch(mode=0o600)

    before = os.umask(mask)
    try:
        path = Store(tmp_path / "store").keep(KEY, private).path
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_modes_of_new_files(tmp_path: Path, mask: int) -> None:
    (tmp_path / "kept").write_bytes(b"")
    (tmp_path / "kept").chmod(0o400)
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "file", b"one")
        copy_whole(tmp_path / "kept", tmp_path / "copy")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "copy")} == {0o666 & ~mask}


def test_what_is_taken_and_what_is_computed_is_counted_once_each(tmp_path: Path) -> None:
    store, key, other = Store(tmp_path), key_of(a=1), key_of(a=2)
    store.keep(key, lambda folder, _: None, seconds=5.0)
    with count_uses() as uses:
        for _ in range(3):
            store.keep(key, lambda folder, _: None)
            store.keep(other, lambda folder, _: None, seconds=2.0)
    assert uses.to_json() == {"reused": 1, "reused_seconds": 5.0, "computed": 1, "computed_seconds": 2.0}
    store.find(key)
    assert len(uses.reused) == 1  # nothing is counted behind the block


def test_an_entry_that_another_host_named_first_is_taken(tmp_path: Path) -> None:
    """Where a network file system passes no locks on, two hosts fill the same entry, and the second finds it named."""
    store, key = Store(tmp_path / "ours"), key_of(a=1)

    def write(folder: Path, _: Path) -> None:
        (folder / "result").write_text("same")

    theirs = Store(tmp_path / "theirs").keep(key, write).path

    def write_late(folder: Path, scratch: Path) -> None:
        write(folder, scratch)
        shutil.copytree(theirs, store.root / key)

    entry = store.keep(key, write_late)
    assert not entry.fresh and (entry.path / "result").read_text() == "same"
    assert not list((store.root / "partial").glob("*/*/result"))
