"""A run from Python shows its page, names its files and refuses what the command refuses."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgewise
from edgewise.models import ModelError
from edgewise.recipes import quantize_only
from edgewise.report.document import Report
from edgewise.report.recommend import Recommendation
from edgewise.run import deployed as module
from edgewise.run.deployed import Deployed


def report() -> Report:
    best = Recommendation(target="onnx", precision="int8", path="artifacts/onnx/x.onnx", reason="the only one")
    none = Recommendation(target="xnnpack", precision=None, path=None, reason="none of 2 has passed")
    return Report(recipe={"name": "<mine>"}, environment={}, recommended=[best, none])


def test_it_shows_its_page_in_a_frame_and_names_its_files() -> None:
    made = Deployed(report(), Path("out"))
    shown = made._repr_html_()
    assert shown.startswith("<iframe ") and "&lt;mine&gt;" in html.unescape(shown) and shown.count("<") == 2
    assert made.file("onnx") == Path("out/artifacts/onnx/x.onnx")
    assert made.file("xnnpack") is None and made.file("coreml") is None


def test_deploy_runs_the_recipe_and_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    asked: dict[str, Any] = {}

    def run(job: Any, watch: Any, *, keep_going: bool) -> Report:
        asked.update(name=job.recipe.name, keep_going=keep_going)
        return report()

    monkeypatch.setattr(module, "run", run)
    made = edgewise.deploy(quantize_only(), tmp_path / "out", quiet=True, keep_going=True)
    assert asked == {"name": "quantize_only", "keep_going": True} and made.out == tmp_path / "out"
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_wrong_recipe_is_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelError, match="resnet19"):
        edgewise.deploy(replace(quantize_only(), model="resnet19"))
