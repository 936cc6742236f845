"""A run's folder holds one run: another's is refused, two at once wait, an earlier one's files go."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.errors import RequestError
from edgewise.report.document import Report
from edgewise.report.outcomes import Outcomes
from edgewise.report.rows import ArtifactFile
from edgewise.report.watch import Watch
from edgewise.run import usage
from edgewise.run.place import check_owner, hold_place, sweep_earlier
from edgewise.verify import manifest

MINE = {"name": "small", "model": "net.py:build", "data": "digits"}


def write_report(place: Path, **fields: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    Report(recipe=MINE | fields, environment={}).write(place)


@pytest.mark.parametrize("what", ["name", "model", "data"])
def test_a_folder_of_another_run_is_refused_by_what_differs(what: str, tmp_path: Path) -> None:
    check_owner(tmp_path / "new", MINE, "abc")
    write_report(tmp_path)
    check_owner(tmp_path, MINE, "abc")
    with pytest.raises(RequestError, match=rf"holds a run of \w+ {MINE[what]}; this one is of \w+ other.*--out"):
        check_owner(tmp_path, MINE | {what: "other"}, "abc")


def test_the_same_network_and_images_by_another_path_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_report(tmp_path, data="imagefolder:here")
    Outcomes(data="abc", labels=np.zeros(2, np.int32)).write(tmp_path)
    same = MINE | {"model": f"{tmp_path / 'net.py'}:build", "data": "imagefolder:/there"}
    check_owner(tmp_path, same, "abc")
    with pytest.raises(RequestError, match="holds a run of data imagefolder:here"):
        check_owner(tmp_path, same, "other images")


def test_a_folder_of_a_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"kind": "search"}', encoding="utf-8")
    with pytest.raises(RequestError, match=r"holds a search.*--out"):
        check_owner(tmp_path, MINE, "abc")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', "\x00"])
def test_a_report_that_says_nothing_owns_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    check_owner(tmp_path, MINE, "abc")


def test_a_second_run_waits_for_the_first_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, entered = tmp_path / "out", threading.Event()

    def second() -> None:
        with hold_place(place, Watch(quiet=False)):
            entered.set()

    with hold_place(place, Watch(quiet=True)):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(20)
    thread.join()
    assert f"another run writes to {place}" in capsys.readouterr().err.replace("\n", "")
    handle = os.open(place / ".lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more
    os.close(handle)


def deliver(place: Path, name: str, checkpoint: str) -> ArtifactFile:
    folder, network = place / "artifacts" / "fake", place / "checkpoints" / checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    network.mkdir(parents=True, exist_ok=True)
    (network / "model.json").write_text("{}", encoding="utf-8")
    file = folder / name
    for suffix in ("", manifest.CARD, manifest.GOLDEN, usage.SUFFIX):
        file.with_name(name + suffix).write_text(name, encoding="utf-8")
    manifest.write(file, checkpoint)
    return ArtifactFile(target="fake", path=f"artifacts/fake/{name}", sha256="0" * 64, bytes=1)


def report_of(*files: ArtifactFile) -> Report:
    report = Report(recipe=dict[str, Any](MINE), environment={})
    report.artifacts.extend(files)
    return report


def test_an_earlier_run_s_files_go_with_all_that_is_theirs_alone(tmp_path: Path) -> None:
    deliver(tmp_path, "old.fake", "net-old")
    deliver(tmp_path, "shared.fake", "net-new")
    new = deliver(tmp_path, "new.fake", "net-new")
    mine = tmp_path / "artifacts" / "fake" / "mine.txt"
    mine.write_text("a person's own", encoding="utf-8")
    assert sweep_earlier(tmp_path, report_of()) == []  # nothing delivered: nothing goes
    assert sweep_earlier(tmp_path, report_of(new)) == ["old.fake", "shared.fake"]
    names = {path.name for path in mine.parent.iterdir()}
    suffixes = ("", manifest.CARD, manifest.GOLDEN, usage.SUFFIX, manifest.SUFFIX)
    assert names == {"mine.txt", *(f"new.fake{suffix}" for suffix in suffixes)}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["net-new"]
    assert sweep_earlier(tmp_path, report_of(new)) == []


def test_a_damaged_manifest_takes_no_network_with_it(tmp_path: Path) -> None:
    deliver(tmp_path, "old.fake", "net-old")
    new = deliver(tmp_path, "new.fake", "net-new")
    manifest.path_of(tmp_path / "artifacts" / "fake" / "old.fake").write_text(
        "0" * 64 + "  ../../../x\n", encoding="utf-8"
    )
    assert sweep_earlier(tmp_path, report_of(new)) == ["old.fake"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"net-old", "net-new"}


def test_the_owner_is_read_from_what_a_run_writes(tmp_path: Path) -> None:
    write_report(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["recipe"] == MINE
