"""A run's folder with two ONNX files of a linear classifier of the digits, and the bundle of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from edgewise import calib_data, targets
from edgewise.device import bundle
from edgewise.device.bundle import Bundle
from edgewise.measure.values import Accuracy, Difference
from edgewise.report.document import Report
from edgewise.report.rows import ArtifactFile, Row
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.verify import card, golden
from edgewise.verify.card import Card

DATA = calib_data.load("digits")


def classifier() -> np.ndarray[Any, Any]:
    """[64, 10], fitted by ridge regression: right on about nine digits of ten."""
    pixels = DATA.train.batch(torch.arange(len(DATA.train))).float().flatten(1).numpy() / 255
    wanted = np.eye(10, dtype=np.float32)[DATA.train.labels.numpy()]
    found: np.ndarray[Any, Any] = np.linalg.solve(pixels.T @ pixels + np.eye(64, dtype=np.float32), pixels.T @ wanted)
    return found.astype(np.float32)


def write_onnx(path: Path, *weights: np.ndarray[Any, Any]) -> None:
    """Flattened images times one matrix after the other; by hand, since exporting takes many times longer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["images"], ["0"])]
    nodes += [helper.make_node("MatMul", [str(i), f"w{i}"], [str(i + 1)]) for i in range(len(weights))]
    held = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 8, 8])
    told = helper.make_tensor_value_info(str(len(weights)), TensorProto.FLOAT, [1, 10])
    model = helper.make_model(
        helper.make_graph(nodes, "net", [given], [told], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)


def write_file(run: Path, name: str, precision: str, *weights: np.ndarray[Any, Any], **fields: Any) -> ArtifactFile:
    """One file with its card and golden images; ``fields``: of the card, where they differ."""
    path = run / "artifacts/onnx" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_onnx(path, *weights)
    target = targets.get("onnx")
    chosen = golden.choose(DATA.test)
    assert target.load is not None
    answers = target.load(path, 1)(chosen.images.float() / 255)
    record = golden.write(
        path,
        golden.Golden(chosen.images, chosen.index, answers),
        golden.tolerance(answers, answers),
        golden.runtime_of(target),
    )
    versus = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    row = Row(
        step="artifact", target="onnx", params=640, macs=640, bytes=path.stat().st_size,
        accuracy=Accuracy(top1=0.9, n=540, ci95=(0.8, 1.0), vs_baseline=versus),
        latency=None, verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0, precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    kept = Card(**{
        "target": "onnx", "sha256": file_digest(path), "recipe": "r", "model": "m", "data_digest": DATA.digest, "seed": 0,
        "input_shape": DATA.shape, "mean": (0.0,), "std": (1.0,), "classes": DATA.classes, "max_drop": 0.07, "row": row,
        "golden": record, **fields,
    })  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    place = path.relative_to(run).as_posix()
    return ArtifactFile(target="onnx", path=place, sha256=kept.sha256, bytes=path.stat().st_size)


def write_run(run: Path) -> Path:
    """The folder, as a run leaves it."""
    weights = classifier()
    wide = np.eye(64, 2048, dtype=np.float32)
    files = [
        write_file(run, "wide.onnx", "float32", wide, wide.T.copy(), weights),
        write_file(run, "narrow.onnx", "int8", weights),
    ]
    report = Report(recipe={"name": "tiny", "data": "digits", "seed": 0}, environment={}, artifacts=files)
    report.write(run)
    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def bundled(run_folder: Path) -> Bundle:
    """The bundle of it, with 60 images."""
    return bundle.write(run_folder, images=60)


@pytest.fixture(scope="session")
def sent(bundled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A result as this machine's bundle writes it, with no package there but NumPy and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("device")
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        (folder / name).symlink_to(installed / name)
    # Without the site packages, so that nothing else that is installed can be found.
    command = [sys.executable, "-S", str(bundled.path), "--brief", "0.3", "--out", "result.json"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "result.json").read_bytes()
