"""Reading what somebody else may have written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgewise.store.json_values import decode
from edgewise.store.reading import open_regular, parse_json, read_json, read_regular


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' stands in it twice"),
        (b'{"top1": NaN}', "finite"),
        (b"[-Infinity]", "finite"),
        (b"[1e999]", "finite"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "digits"),
        (b"\xff{}", "decode"),
        (b"", "Expecting value"),
    ],
)
def test_documents_that_readers_differ_about_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "document.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_json(path)


def test_what_json_has_is_read() -> None:
    assert parse_json(b'{"a": [1, -2.5e3, null, true, "\\u00e4"], "b": {"a": 1}}') == {
        "a": [1, -2500.0, None, True, "ä"], "b": {"a": 1},
    }  # fmt: skip


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63])
def test_numbers_that_nothing_can_count_with_are_refused(value: int) -> None:
    for kind in (int, float):
        with pytest.raises(ValueError, match="64 bits"):
            decode(kind, value)
    assert decode(float, 2**63 - 1) == float(2**63 - 1)


def test_no_pipe_is_waited_for_and_no_device_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for place in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            read_regular(place, 10)


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match=r"1,000,000,000,000 bytes, more than the 10 "):
        read_regular(tmp_path / "sparse", 10)


def test_files_that_are_exchanged_meanwhile_are_one_or_the_other(tmp_path: Path) -> None:
    """A pipe in a file's place, put there again and again: read or refused, never waited for."""
    place, stop = tmp_path / "file", threading.Event()
    for name in ("whole", "pipe"):
        (tmp_path / name).write_bytes(b"whole") if name == "whole" else os.mkfifo(tmp_path / name)

    def exchange() -> None:
        while not stop.is_set():
            for name in ("pipe", "whole"):
                os.link(tmp_path / name, tmp_path / "aside")
                (tmp_path / "aside").replace(place)

    os.link(tmp_path / "whole", place)
    other = threading.Thread(target=exchange, daemon=True)
    other.start()
    try:
        for _ in range(500):
            try:
                with open_regular(place) as file:
                    assert file.read() == b"whole"
            except ValueError as error:
                assert "no regular file" in str(error)
    finally:
        stop.set()
        other.join()
