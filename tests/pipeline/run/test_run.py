"""The whole way, small: a recipe of the user's own on the embedded digits, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

RECIPE = """
from edgewise.stages.finetune import Finetune
from edgewise.stages.train import Train
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.verify.gates import Limits
from edgewise.recipe import Recipe
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training

PLAIN = Augment(crop=0, flip=False)


def quick():
    return Recipe(
        name="quick",
        model="tiny_resnet",
        data="digits",
        baseline=Train(training=Training(epochs=3, lr=0.05, batch_size=64, augment=PLAIN)),
        stages=(
            Prune(channels=0.6),
            Finetune(training=Training(epochs=3, lr=0.05, batch_size=64, distill=0.5, augment=PLAIN)),
            Fold(),
        ),
        quantize=Quantize(training=Training(epochs=1, lr=1e-4, batch_size=64, precision="32-true", augment=PLAIN)),
        targets=("onnx",),
        limits=Limits(max_drop=0.9, max_latency_ratio=50, min_agreement=0.9),
    )


def strict():
    import dataclasses

    return dataclasses.replace(quick(), name="strict", limits=Limits(max_drop=0.9, max_latency_ratio=1e-6))
"""


def command(folder: Path, recipe: str, out: str) -> list[str]:
    (folder / "recipe.py").write_text(RECIPE, encoding="utf-8")
    return [
        sys.executable,
        "-m",
        "edgewise",
        "run",
        f"{folder / 'recipe.py'}:{recipe}",
        "--out",
        str(folder / out),
        "--json",
    ]


def environment(folder: Path, store: str = "store") -> dict[str, str]:
    return os.environ | {"EDGEWISE_STORE": str(folder / store), "OMP_NUM_THREADS": "1"}


def run(folder: Path, recipe: str = "quick", out: str = "out", store: str = "store") -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        command(folder, recipe, out),
        cwd=ROOT,
        env=environment(folder, store),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("run")
    status, report, log = run(folder)
    assert status == 0, log
    return folder, report, log


def test_every_step_and_file_has_a_row(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    steps = ["baseline", "prune", "finetune", "fold", "calibrate", "quantize", "artifact"]
    assert [row["step"] for row in report["rows"]] == steps
    assert report == json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    for row in report["rows"]:
        assert row["accuracy"]["n"] == 540
        assert row["verdict"] in ("pass", "not-checked")
    assert report["rows"][-1]["verification"] == "runtime"
    assert report["rows"][-1]["agreement"]["n"] == 540


def test_every_row_with_a_file_tells_its_time_and_peak_memory(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, report, _ = finished
    rows = [row for row in report["rows"] if row["latency"] is not None]
    assert [row["step"] for row in rows] == ["baseline", "prune", "finetune", "fold", "artifact"]
    for row in rows:
        timed = row["latency"]
        assert 0 < timed["p50_ms"] <= timed["p90_ms"]
        assert timed["ci95"][0] <= timed["ratio_to_baseline"] <= timed["ci95"][1]
        if sys.platform in ("linux", "darwin"):
            assert row["peak_bytes"] > 0
    assert {row["peak_bytes"] for row in report["rows"] if row["latency"] is None} == {None}


def test_the_page_and_the_artifact_lie_where_the_report_says(finished: tuple[Path, dict[str, Any], str]) -> None:
    import hashlib

    folder, report, _ = finished
    (entry,) = report["artifacts"]
    content = (folder / "out" / entry["path"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert len(content) == entry["bytes"]
    assert "<html" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_the_exported_file_has_the_pruned_channel_counts(finished: tuple[Path, dict[str, Any], str]) -> None:
    import onnx

    folder, report, _ = finished
    rows = {row["step"]: row for row in report["rows"]}
    assert rows["prune"]["params"] < rows["baseline"]["params"]
    model = onnx.load(folder / "out" / report["artifacts"][0]["path"])
    weights = [tuple(i.dims) for i in model.graph.initializer if len(i.dims) == 4]
    assert sorted(weights) == sorted(pruned_shapes(folder / "store"))


def pruned_shapes(store: Path) -> list[tuple[int, ...]]:
    """Convolution shapes in the checkpoint of the folded network, the last float step."""
    from safetensors import safe_open

    for path in store.glob("*/model.json"):
        operations = [entry["op"] for entry in json.loads(path.read_text(encoding="utf-8"))["surgery"]]
        if operations == ["resize", "replace"]:
            with safe_open(path.with_name("model.safetensors"), "pt") as file:
                shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
            return [shape for shape in shapes if len(shape) == 4]
    raise AssertionError("no folded checkpoint in the store")


def test_a_second_run_computes_nothing_and_reports_the_same(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    status, again, log = run(folder)
    assert (status, again) == (0, report)
    assert "  training, " not in log
    assert "  writing" not in log


def test_a_failed_gate_ends_the_run_with_one_and_keeps_what_was_measured(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    folder, _, _ = finished
    status, report, _ = run(folder, "strict", "strict")
    assert status == 1
    assert [row["step"] for row in report["rows"]] == ["baseline", "prune"]
    assert report["rows"][-1]["verdict"] == "fail"
    assert "of the baseline's time" in report["rows"][-1]["reason"]
    assert (folder / "strict" / "report.html").is_file()


def test_verify_and_bench_take_the_written_file(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    path = folder / "out" / report["artifacts"][0]["path"]
    verified = pipeline("verify", str(path), "--data", "digits", "--json")
    assert json.loads(verified.stdout)["verdict"] == "pass"
    assert json.loads(verified.stdout)["accuracy"]["top1"] == report["rows"][-1]["accuracy"]["top1"]
    timed = json.loads(pipeline("bench", str(path), "--seconds", "0.2", "--json").stdout)
    assert timed["files"][0]["ratio_to_first"] == 1.0
    card = path.with_name(path.name + ".card.json")
    assert json.loads(card.read_text(encoding="utf-8"))["row"]["peak_bytes"] == report["rows"][-1]["peak_bytes"]
    changed = json.loads(card.read_text(encoding="utf-8")) | {"sha256": "0" * 64}
    other = folder / "changed.onnx"
    other.write_bytes(path.read_bytes())
    other.with_name("changed.onnx.card.json").write_text(json.dumps(changed), encoding="utf-8")
    # Nothing vouches for a copy that left its list of digests behind, whatever its card says.
    assert "changed.onnx.sha256" in pipeline("verify", str(other), "--data", "digits", status=1).stdout


def pipeline(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "edgewise", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_file(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    wanted = report["artifacts"][0]["sha256"]
    for moment in (4.0, 8.0, 12.0, 16.0, 20.0):
        process = subprocess.Popen(
            command(folder, "quick", "killed"),
            cwd=ROOT,
            env=environment(folder, "killed-store"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    status, again, _ = run(folder, "quick", "killed", "killed-store")
    assert status == 0
    assert again["artifacts"][0]["sha256"] == wanted
