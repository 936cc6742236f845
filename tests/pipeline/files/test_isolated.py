"""Work in a process of its own: results and errors come back, and a death is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise import targets
from edgewise.errors import CrashError, RequestError
from edgewise.files.isolated import call_remotely, open_isolated

MODULE = """
import ctypes, os, signal, sys
from edgewise import targets
from edgewise.errors import RequestError


class Unreadable(Exception):
    def __str__(self):
        raise UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "invalid start byte")


def doubled(start):
    return lambda value: start + 2 * value


def work(how):
    def do(value):
        if how == "request":
            raise RequestError(f"wanted less than {value}")
        if how == "unreadable":
            raise Unreadable
        if how == "exit":
            os._exit(3)
        if how == "system exit":
            sys.exit("enough")
        os.write(2, b"terminate called\\n\\x1b[31m" + b"\\xff")
        os.kill(os.getpid(), getattr(signal, how))
    return do


def fails(how):
    return work(how)(0)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions that another process can import."""
    (tmp_path / "far_work.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    module = importlib.import_module("far_work")
    yield module
    import sys

    del sys.modules["far_work"]


def test_results_come_back_call_after_call(made: Any) -> None:
    with call_remotely(made.doubled, 1, what="doubling") as far:
        assert [far(2), far(5)] == [5, 11]


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("request", RequestError, "wanted less than 0"),
        ("unreadable", CrashError, "trying: Unreadable"),
        ("exit", CrashError, r"trying: the process died \(status 3\)"),
        ("system exit", CrashError, "trying: SystemExit: enough"),
        ("SIGSEGV", CrashError, r"trying: the process died \(SIGSEGV\): terminate called \[31m"),
        ("SIGKILL", CrashError, r"trying: the process died \(SIGKILL\)"),
    ],
)
@pytest.mark.parametrize("when", ["made", "called"])
def test_whatever_happens_there_is_an_error_here(
    made: Any, how: str, kind: type[Exception], words: str, when: str
) -> None:
    make, call = (made.fails, False) if when == "made" else (made.work, True)
    with pytest.raises(kind, match=words) as caught, call_remotely(make, how, what="trying") as far:
        if call:
            far(0)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_no_process_is_left(made: Any) -> None:
    with pytest.raises(KeyError), call_remotely(made.doubled, 1, what="doubling") as far:
        process = far.process  # type: ignore[attr-defined]
        raise KeyError
    assert process.exitcode is not None


def test_a_written_file_answers_from_there_as_it_does_here(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    program = torch.export.export(net, (torch.zeros(1, 3, 2, 2),))
    path = targets.get("onnx").export(program, tmp_path / "net.onnx", targets.USUAL).path
    images = torch.randn(5, 3, 2, 2)
    with open_isolated("onnx", path) as runner:
        torch.testing.assert_close(runner(images), net(images).detach())
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(targets.TargetError, match="export it again"), open_isolated("onnx", path):
        pass
