"""What the runtime of .pte files records of a call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

from edgewise.targets import USUAL, TargetError, _executorch_profile, get

IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (IMAGE,))
    return get("xnnpack").export(program, tmp_path_factory.mktemp("traced") / "net.pte", USUAL).path


def test_the_installed_runtime_leaves_no_trace(path: Path) -> None:
    # A release that fails here records events: then a reader of them is due.
    assert _executorch_profile.trace(path.read_bytes(), IMAGE) == b""
    with pytest.raises(TargetError, match=r"found none: it is built without event tracing \(executorch \d"):
        _executorch_profile.profile(path, IMAGE, threads=1)


def test_a_runtime_that_leaves_one_is_not_said_to_leave_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_executorch_profile, "trace", lambda program, image: b"four")
    with pytest.raises(TargetError, match="found a trace of 4 bytes, which is not read yet"):
        _executorch_profile.profile(path, IMAGE, threads=1)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pte"
    path.write_bytes(b"nothing")
    with pytest.raises(TargetError, match="wanted an ExecuTorch program"):
        _executorch_profile.profile(path, IMAGE, threads=1)
