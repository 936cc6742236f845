"""Which class every row gave to every image, kept and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import RequestError
from edgewise.report.outcomes import FILE, NO_CLASS, Outcomes, key_of_row, read_outcomes
from edgewise.report.rows import Row


def row(step: str, name: str = "", target: str | None = None, precision: str | None = None) -> Row:
    return Row(
        step=step, target=target, params=1, macs=1, bytes=1, accuracy=None, latency=None, verification=None,
        undelegated=(), verdict="pass", reason="", seconds=0.0, name=name, precision=precision,
    )  # fmt: skip


def test_kept_and_read_back(tmp_path: Path) -> None:
    kept = Outcomes(data="d", labels=np.array([0, 1, 2], dtype=np.int32))
    kept.add(row("baseline"), np.eye(3, dtype=np.float32))
    answers = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    answers[2, 1] = np.nan
    kept.add(row("artifact", target="onnx", precision="int8"), answers)
    kept.write(tmp_path)
    found = read_outcomes(tmp_path)
    assert found is not None and found.data == "d" and list(found.given) == ["baseline", "onnx int8"]
    assert found.given["onnx int8"].tolist() == [0, 0, NO_CLASS]
    assert found.right("baseline").all() and found.right("onnx int8").tolist() == [True, False, False]


def test_rows_are_named_apart() -> None:
    names = [key_of_row(r) for r in (row("finetune", "finetune 2"), row("prune"), row("artifact", target="coreml"))]
    assert names == ["finetune 2", "prune", "coreml file"]


def test_none_and_a_damaged_one(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(RequestError, match="run the recipe again"):
        read_outcomes(tmp_path)
