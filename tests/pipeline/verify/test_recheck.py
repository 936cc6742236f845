"""Re-checking files against their cards, with a runtime that is a function."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgewise import calib_data, targets
from edgewise.errors import CrashError, RequestError
from edgewise.measure.values import Accuracy, Difference
from edgewise.report.rows import Row
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.verify import card, manifest
from edgewise.verify import recheck as rechecking
from edgewise.verify.card import Card
from edgewise.verify.recheck import recheck_file

DATA = calib_data.load("digits")


def answers(right: int) -> Any:
    """A runner over the test part, image by image in order, that gets exactly the first ``right`` images right."""
    given = 0

    def run(images: torch.Tensor) -> torch.Tensor:
        nonlocal given
        labels = DATA.test.labels[given : given + len(images)].clone()
        wrong = torch.arange(given, given + len(images)) >= right
        labels[wrong] = (labels[wrong] + 1) % 10
        given += len(images)
        return torch.nn.functional.one_hot(labels, 10).float()

    return run


def card_of(path: Path, top1: float) -> Card:
    versus = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    row = Row(
        step="artifact", target="fake", params=1, macs=1, bytes=path.stat().st_size,
        accuracy=Accuracy(top1=top1, n=540, ci95=(0.0, 1.0), vs_baseline=versus),
        latency=None, verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0,
    )  # fmt: skip
    return Card(
        target="fake", sha256=file_digest(path), recipe="r", model="m", data_digest=DATA.digest, seed=0,
        input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=DATA.classes, max_drop=0.02, row=row,
    )  # fmt: skip


def keep(path: Path, kept: Card) -> None:
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    manifest.write(path, "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A written file with the card of a network that got 90 % right."""
    path = tmp_path / "net.fake"
    path.write_bytes(b"network")
    keep(path, card_of(path, 0.9))
    return path


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A runtime that gets 486 of 540 right, which is 90 %."""
    fake = SimpleNamespace(name="fake", needs=(), npm=(), load=lambda path, threads: answers(486), reference=None)
    monkeypatch.setattr(targets, "get", lambda name: fake)

    @contextlib.contextmanager
    def here(target: str, path: Path) -> Iterator[Any]:
        yield fake.load(path, 1) if fake.load else fake.reference(path)

    monkeypatch.setattr(rechecking, "open_isolated", here)
    return fake


def test_the_same_file_passes(file: Path, target: SimpleNamespace) -> None:
    found = recheck_file(file, "digits")
    assert (found.verdict, found.grade) == ("pass", "runtime")
    assert found.accuracy is not None
    assert (found.accuracy.top1, found.accuracy.n) == (0.9, 540)


def test_another_file_fails_however_accurate(file: Path, target: SimpleNamespace) -> None:
    file.write_bytes(b"other network")
    found = recheck_file(file, "digits")
    assert found.verdict == "fail"
    assert "not the file that was verified" in found.reason


@pytest.mark.parametrize(("right", "verdict"), [(476, "pass"), (474, "fail"), (540, "pass"), (0, "fail")])
def test_accuracy_may_fall_by_the_limit(file: Path, target: SimpleNamespace, right: int, verdict: str) -> None:
    target.load = lambda path, threads: answers(right)
    assert recheck_file(file, "digits").verdict == verdict


@pytest.mark.parametrize("name", ["net.fake", "net.fake.card.json", "net.fake.sha256"])
@pytest.mark.parametrize("by", ["other bytes", "pipe", "nothing"])
def test_what_is_exchanged_after_it_was_hashed_is_not_opened(
    file: Path, target: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str, by: str
) -> None:
    really = manifest.problems

    def hash_and_exchange(*arguments: Any) -> Any:
        found, place = really(*arguments), file.with_name(name)
        assert found == []
        place.unlink()
        if by == "pipe":
            os.mkfifo(place)
        elif by == "other bytes":
            place.write_bytes(b"x" * 64)
        return found

    monkeypatch.setattr(manifest, "problems", hash_and_exchange)
    target.load = opened_nothing
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and found.path == file and "edgewise-" not in found.reason


def test_what_is_opened_are_the_bytes_that_were_hashed(file: Path, target: SimpleNamespace) -> None:
    def load(path: Path, threads: int) -> Any:
        file.write_bytes(b"another")
        assert path.read_bytes() == b"network"
        raise targets.TargetError(f"wanted a network at {path}, found none")

    target.load = load
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and f"wanted a network at {file}, found none" in found.reason


def test_other_images_fail(file: Path, target: SimpleNamespace) -> None:
    keep(file, dataclasses.replace(card_of(file, 0.9), data_digest="0" * 64))
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and "these are not the images it was verified on" in found.reason


def test_a_card_of_another_file_fails(file: Path, target: SimpleNamespace) -> None:
    keep(file, dataclasses.replace(card_of(file, 0.9), sha256="0" * 64))
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and "its card says sha256 0000" in found.reason


def test_a_runtime_that_dies_is_a_finding(file: Path, target: SimpleNamespace) -> None:
    def dies(path: Path, threads: int) -> Any:
        raise CrashError("the process died (SIGSEGV)")

    target.load = dies
    found = recheck_file(file, "digits")
    assert (found.verdict, found.grade) == ("fail", "written") and "SIGSEGV" in found.reason


def test_a_reference_is_graded_as_one(file: Path, target: SimpleNamespace) -> None:
    target.load, target.reference = None, lambda path: answers(486)
    found = recheck_file(file, "digits")
    assert (found.grade, found.verdict) == ("reference", "pass")


def test_a_file_that_nothing_runs_is_not_checked(file: Path, target: SimpleNamespace) -> None:
    target.load = None
    found = recheck_file(file, "digits")
    assert (found.grade, found.verdict, found.accuracy) == ("written", "not-checked", None)


def test_a_file_that_nothing_runs_must_still_be_the_same_file(file: Path, target: SimpleNamespace) -> None:
    target.load = None
    file.write_bytes(b"other network")
    assert recheck_file(file, "digits").verdict == "fail"


def test_json_and_text(file: Path, target: SimpleNamespace) -> None:
    found = recheck_file(file, "digits")
    document = json.loads(json.dumps(found.to_json()))
    assert list(document) == [
        "artifact", "target", "sha256", "verification", "accuracy", "verdict", "reason", "fed", "input_size",
    ]  # fmt: skip
    assert document["sha256"] == file_digest(file)
    assert list(document["accuracy"]) == ["top1", "n", "ci95", "balanced", "top5", "recall"]
    assert "90" in str(found) and "540 images" in str(found)


@pytest.mark.parametrize("renewed", [False, True], ids=["old manifest", "manifest made to fit"])
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"target": "fake"}', "[" * 20_000, "\x00", '{"target": NaN}'])
def test_a_damaged_card_fails(file: Path, target: SimpleNamespace, damage: str, renewed: bool) -> None:
    target.load = opened_nothing
    card.path_of(file).write_text(damage, encoding="utf-8")
    if renewed:
        manifest.write(file, "")
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and "net.fake.card.json" in found.reason
    assert "untrusted" in str(found)


def opened_nothing(path: Path, threads: int) -> Any:
    raise AssertionError("a file that is not what was verified was opened")


@pytest.mark.parametrize("lost", [card.path_of, manifest.path_of])
def test_lost_evidence_fails(file: Path, target: SimpleNamespace, lost: Callable[[Path], Path]) -> None:
    target.load = opened_nothing
    lost(file).unlink()
    found = recheck_file(file, "digits")
    assert found.verdict == "fail" and lost(file).name in found.reason


def test_what_is_no_file_is_a_wrong_request(file: Path, target: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        recheck_file(file.with_name("none"), "digits")
    os.mkfifo(file.with_name("pipe"))
    with pytest.raises(RequestError, match="is no regular file"):
        recheck_file(file.with_name("pipe"), "digits")


def test_images_of_another_shape(file: Path, target: SimpleNamespace) -> None:
    keep(file, dataclasses.replace(card_of(file, 0.9), input_shape=(3, 32, 32)))
    with pytest.raises(RequestError, match=r"takes images \(3, 32, 32\)"):
        recheck_file(file, "digits")


def test_answers_that_moved_fail_however_accurate(file: Path, target: SimpleNamespace) -> None:
    # The runner answers with 0 and 1, a spread of 1; the card's first image has 0.2 where the file gives 0.
    given = answers(486)(torch.zeros(2, 1, 8, 8))
    given[0, int(given[0].argmin())] = 0.2
    keep(file, dataclasses.replace(card_of(file, 0.9), answers=tuple(map(tuple, given.tolist()))))
    found = recheck_file(file, "digits")
    assert (found.verdict, found.accuracy and found.accuracy.top1) == ("fail", 0.9)
    assert "moved by 20%" in found.reason and "10% allowed" in found.reason
    given[0] = answers(486)(torch.zeros(1, 1, 8, 8))[0] + 0.09
    keep(file, dataclasses.replace(card_of(file, 0.9), answers=tuple(map(tuple, given.tolist()))))
    assert recheck_file(file, "digits").verdict == "pass"


def test_a_file_that_is_fed_bytes_gets_bytes(file: Path, target: SimpleNamespace) -> None:
    seen = []

    def load(path: Path, threads: int) -> Any:
        known = answers(486)
        return lambda images: seen.append((images.dtype, tuple(images.shape[1:]))) or known(images)

    target.load = load
    keep(file, dataclasses.replace(card_of(file, 0.9), fed="bytes"))
    found = recheck_file(file, "digits")
    assert set(seen) == {(torch.uint8, (8, 8, 1))}
    assert (found.verdict, found.fed) == ("pass", "bytes") and "fed bytes at 8×8" in str(found)


def test_images_are_resized_to_what_the_file_takes(file: Path, target: SimpleNamespace) -> None:
    kept = dataclasses.replace(card_of(file, 0.9), sizes=((8, 8), (16, 16)), ranged=True)
    keep(file, kept)
    found = recheck_file(file, "digits", size=(12, 9))
    assert (found.verdict, found.size) == ("not-checked", (12, 9)) and "not tried at 12×9" in found.reason
    with pytest.raises(RequestError, match=r"8×8, 16×16 and all between, not 17×8"):
        recheck_file(file, "digits", size=(17, 8))
    keep(file, dataclasses.replace(kept, ranged=False))
    with pytest.raises(RequestError, match="not 12×9"):
        recheck_file(file, "digits", size=(12, 9))
    assert recheck_file(file, "digits", size=(16, 16)).size == (16, 16)


@pytest.mark.parametrize(("before", "verdict"), [(0.9, "pass"), (0.93, "fail")])
def test_at_another_size_it_is_held_against_what_it_did_there(
    file: Path, target: SimpleNamespace, before: float, verdict: str
) -> None:
    kept = dataclasses.replace(card_of(file, 0.9), sizes=((12, 9),))
    agreement = {"top1": 1.0, "max_abs": 0.0, "n": 540}
    tried = {"at_other_sizes": [{"height": 12, "width": 9, "top1": before, "agreement": agreement}]}
    keep(file, dataclasses.replace(kept, row=dataclasses.replace(kept.row, facts=tried)))
    found = recheck_file(file, "digits", size=(12, 9))
    assert found.verdict == verdict and "at 12×9, on 540 images," in found.reason
