"""Times that others on the machine spoilt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgewise.measure.conditions import Conditions
from edgewise.measure.values import Latency
from edgewise.run.artifacts import Files
from edgewise.store.entries import Store, key_of
from edgewise.verify import gates
from edgewise.verify.gates import Limits


def test_times_of_a_busy_machine_that_left_a_file_open_are_measured_again_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine first, a free one later: the next run decides, the one after that measures nothing."""
    quiet = Conditions(cpu_share=1.0, clock_change=0.0, drift=0.0, outliers=0.0)
    conditions = [replace(quiet, cpu_share=0.2), replace(quiet, cpu_share=0.3), quiet]
    files = Files(job=SimpleNamespace(recipe=SimpleNamespace(threads=1)), store=Store(tmp_path), pool=None, watch=None)  # type: ignore[arg-type]
    monkeypatch.setattr(files, "_latency_key", lambda *given: key_of(attempt=given[3]))
    usual = {
        "on": "onnx",
        "batch": 1,
        "threads": 1,
        "p50_ms": 1.0,
        "p90_ms": 1.0,
        "ratio_to_baseline": 1.0,
        "ci95": (0.99, 1.01),
    }
    monkeypatch.setattr(files, "_time", lambda *given: Latency(**usual, conditions=conditions.pop(0)))
    judge = partial(gates.on_latency, limits=Limits(), same_work=True)
    for verdict, left in (("not-checked", 2), ("not-checked", 1), ("pass", 0), ("pass", 0)):
        finding = files.judged_latency(None, None, None, judge)[2]  # type: ignore[arg-type]
        assert (finding.verdict, len(conditions)) == (verdict, left)
