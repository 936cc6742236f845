"""A vendor's estimate in the report, and a target's own limit on what it leaves outside."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from edgewise.report.document import Report
from edgewise.report.page import render_page
from edgewise.report.rows import Row
from edgewise.report.summary import estimate_lines
from edgewise.report.terminal import terminal_table
from edgewise.run.artifacts import Files
from edgewise.run.session import Session, float_candidates
from edgewise.targets import Estimate, TargetError
from edgewise.verify import gates
from edgewise.verify.gates import Limits

ESTIMATE = Estimate(
    cycles=49_967, macs=235_280, ms=0.099934, clock_hz=500_000_000, sram_bytes=6_128, flash_bytes=35_600, source="Vela for U55"
)  # fmt: skip
LINE = (
    "npu int8: estimated, not measured: 0.0999 ms at 500 MHz, 49,967 cycles, 6.13 kB SRAM, 35.6 kB flash (Vela for U55)"
)


def row(facts: dict[str, Any]) -> Row:
    return Row(
        step="artifact", target="npu", params=1, macs=1, bytes=1, accuracy=None, latency=None, verification="reference",
        undelegated=(), verdict="pass", reason="", seconds=0.0, precision="int8", facts=facts,
    )  # fmt: skip


def test_an_estimate_is_told_as_one_in_the_terminal_and_on_the_page() -> None:
    rows = [row({"estimate": dataclasses.asdict(ESTIMATE)}), row({})]
    assert estimate_lines(rows) == [LINE]
    report = Report(recipe={"name": "r"}, environment={}, rows=rows)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal_table(report))
    assert LINE in console.export_text()
    assert LINE in render_page(report)


def told(estimate: Any) -> Any:
    made: Any = SimpleNamespace(artifact=SimpleNamespace(facts={"delegates": 1}, path=Path("net.x")))
    target: Any = SimpleNamespace(estimate=estimate)
    return Files.facts(SimpleNamespace(), target, made)  # type: ignore[arg-type]


def test_the_estimate_of_a_file_joins_its_facts() -> None:
    assert told(lambda path: ESTIMATE) == {"delegates": 1, "estimate": dataclasses.asdict(ESTIMATE)}
    assert told(None) == {"delegates": 1}


def test_a_file_without_an_estimate_has_none() -> None:
    def none(path: Path) -> Estimate:
        raise TargetError("in pieces")

    assert told(none) == {"delegates": 1}


@pytest.mark.parametrize(
    ("recipe", "target", "verdict"), [(None, 0, "fail"), (None, None, "pass"), (1, 0, "pass"), (0, None, "fail")]
)
def test_a_target_limits_what_it_leaves_outside_where_the_recipe_does_not(
    recipe: int | None, target: int | None, verdict: str
) -> None:
    job = SimpleNamespace(recipe=SimpleNamespace(target_limits={}))
    session: Any = SimpleNamespace(limits=Limits(max_undelegated=recipe), job=job)
    found = Session.limits_of(session, SimpleNamespace(name="onnx", max_undelegated=target))  # type: ignore[arg-type]
    assert gates.on_coverage(("cos",), found).verdict == verdict


def test_a_target_of_integers_is_asked_for_no_float_file() -> None:
    npu: Any = SimpleNamespace(name="npu", integers_only=True, precisions=())
    cpu: Any = SimpleNamespace(name="cpu", integers_only=False, precisions=())
    assert float_candidates(("float", "int8"), (npu, cpu)) == [(None, (cpu,))]
    assert float_candidates(("float", "int8"), (npu,)) == []
