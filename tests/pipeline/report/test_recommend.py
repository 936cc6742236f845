"""Which file is recommended: the fastest that passed, int8 or not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from edgewise.errors import RequestError
from edgewise.measure.values import Latency
from edgewise.recipe import Recipe
from edgewise.report.document import Report
from edgewise.report.recommend import recommend_files
from edgewise.report.rows import ArtifactFile, Row, Verdict
from edgewise.run.session import float_candidates
from edgewise.stages.quantize import Quantize
from edgewise.stages.train import Train
from edgewise.targets import Precision


def file(
    precision: Precision, ratio: float | None, size: int, verdict: Verdict = "pass", target: str = "onnx"
) -> tuple[Row, ArtifactFile]:
    """A file whose time ratio is known to ±0.02."""
    timing = None
    if ratio is not None:
        timing = Latency(
            on=target, batch=1, threads=1, p50_ms=ratio / 10, p90_ms=ratio, ratio_to_baseline=ratio,
            ci95=(ratio - 0.02, ratio + 0.02),
        )  # fmt: skip
    row = Row(
        step="artifact", target=target, params=1, macs=1, bytes=size, accuracy=None, latency=timing,
        verification="reference", undelegated=(), verdict=verdict, reason="", seconds=0.0, precision=precision,
    )  # fmt: skip
    return row, ArtifactFile(target=target, path=f"artifacts/{target}/{precision}", sha256="", bytes=size)


def recommended(*files: tuple[Row, ArtifactFile]) -> list[tuple[str, str | None, str | None]]:
    found = recommend_files([row for row, _ in files], [artifact for _, artifact in files])
    return [(entry.target, entry.precision, entry.path) for entry in found]


def test_int8_is_not_chosen_where_it_is_slower_than_float() -> None:
    files = file("float32", 0.48, 107_000), file("int8", 0.65, 50_100)
    assert recommended(*files) == [("onnx", "float32", "artifacts/onnx/float32")]
    (entry,) = recommend_files([row for row, _ in files], [artifact for _, artifact in files])
    assert entry.reason == (
        "the fastest that passed, 0.0480 ms (0.48× the baseline); slower: int8 0.0650 ms (0.65× the baseline)"
    )


def test_int8_is_chosen_where_it_is_faster() -> None:
    assert recommended(file("float32", 0.48, 107_000), file("int8", 0.30, 50_100))[0][1] == "int8"


def test_a_failed_file_is_never_chosen_however_fast() -> None:
    assert recommended(file("float32", 0.48, 107_000), file("int8", 0.3, 50_100, "fail"))[0][1] == "float32"
    assert recommended(file("float32", 0.48, 9, "not-checked"), file("int8", 0.3, 9, "fail")) == [("onnx", None, None)]


def test_of_files_that_the_clock_cannot_tell_apart_the_smaller_is_chosen() -> None:
    assert recommended(file("float32", 0.48, 107_000), file("int8", 0.50, 50_100))[0][1] == "int8"


def test_without_times_the_smallest_that_passed_is_chosen() -> None:
    files = file("float16", None, 107_000, target="coreml"), file("int8", None, 50_100, target="coreml")
    assert recommended(*files) == [("coreml", "int8", "artifacts/coreml/int8")]


def test_each_target_has_its_own() -> None:
    found = recommended(file("float32", 0.4, 9), file("int8", 0.6, 9), file("int8", 0.3, 9, target="xnnpack"))
    assert [entry[:2] for entry in found] == [("onnx", "float32"), ("xnnpack", "int8")]


def test_a_report_keeps_its_recommendations() -> None:
    row, artifact = file("float32", 0.48, 107_000)
    report = Report(
        recipe={}, environment={}, rows=[row], artifacts=[artifact], recommended=recommend_files([row], [artifact])
    )
    again = Report.from_json(report.to_json())
    assert again.recommended == report.recommended and again.recommended[0].precision == "float32"
    assert "recommended" not in dataclasses.replace(report, recommended=[]).to_json()


def test_float_candidates_go_to_the_targets_that_have_them() -> None:
    one = SimpleNamespace(name="one", integers_only=False, precisions=("float32", "float16"))
    two = SimpleNamespace(name="two", integers_only=False, precisions=("float16", "palette"))
    three = SimpleNamespace(name="three", integers_only=False, precisions=())
    group = (one, two, three)
    found = float_candidates(("float", "float16", "float32", "palette", "int8"), group)  # type: ignore[arg-type]
    assert found == [(None, (one, two, three)), ("float16", (one,)), ("palette", (two,))]
    assert float_candidates((), group) == []  # type: ignore[arg-type]


def test_wrong_candidates_are_refused() -> None:
    plain = Recipe(name="r", model="m", data="d", baseline=Train(), quantize=Quantize(), candidates=("float", "int8"))
    with pytest.raises(RequestError, match=r"wanted 'float', .* found str 'int4'"):
        dataclasses.replace(plain, candidates=("int4",))
    with pytest.raises(RequestError, match="has no quantize step"):
        dataclasses.replace(plain, quantize=None)
