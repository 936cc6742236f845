"""One cell, in a worker process: write the file, run it on photographs, time it."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgewise import models, targets
from edgewise.files.open import open_file
from edgewise.measure import latency, memory, statistics
from edgewise.store.machine import machine_name
from edgewise.studies.architectures.cells import Cell, installed_targets
from edgewise.studies.architectures.network import (
    Prepared,
    answer_images,
    calibrate_network,
    capture_network,
    compare_logits,
    float_islands,
    prepare_network,
)
from edgewise.targets import Artifact, Runner, Target

_EVALUATING = 8.0
"""Seconds after which no further image is evaluated; two always are."""
_TIMING = 4.0
"""Seconds of timing, for both contenders together, as far as at least five rounds allow."""


class Refused(Exception):
    """The architecture's own file says that it cannot go to this target."""


@lru_cache(maxsize=1)
def prepare_model(name: str) -> Prepared:
    """The architecture of that name, as long as no other is asked for."""
    return prepare_network(models.get(name))


@lru_cache(maxsize=1)
def _capture_float(name: str) -> torch.export.ExportedProgram:
    prepared = prepare_model(name)
    return capture_network(prepared.folded, prepared.shape)


@lru_cache(maxsize=2)
def _calibrate_graph(name: str, quantizer: Any) -> GraphModule:
    return calibrate_network(prepare_model(name), quantizer)


class _File:
    """A written file in a folder that goes when the file is no longer needed."""

    def __init__(self, program: torch.export.ExportedProgram, target: Target, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=scratch)
        start = time.perf_counter()
        self.artifact: Artifact = target.export(program, Path(self._folder.name) / f"net{target.suffix}", targets.USUAL)
        self.seconds = time.perf_counter() - start

    @property
    def bytes(self) -> int:
        """Of the file and of what it wants beside it."""
        return sum(path.stat().st_size for path in Path(self._folder.name).rglob("*") if path.is_file())


@lru_cache(maxsize=1)
def _baseline(name: str, scratch: Path) -> _File:
    """The float ONNX file that every time is compared with."""
    return _File(_capture_float(name), targets.get("onnx"), scratch)


def baseline_file(name: str, scratch: Path) -> Path:
    """Where it lies, as long as no other architecture's is asked for."""
    return _baseline(name, scratch).artifact.path


@lru_cache(maxsize=6)
def _quantized(name: str, target_name: str, scratch: Path) -> tuple[_File, Tensor, dict[str, Any]]:
    """As ``_make_file``. Several are kept: an architecture's are compared once each was measured by itself."""
    target, prepared = targets.get(target_name), prepare_model(name)
    graph = _calibrate_graph(name, target.quantizer(target.grids[0]))
    logits = answer_images(graph, prepared.images)
    facts = {
        "islands": dict(sorted(float_islands(graph).items())),
        "drift": asdict(compare_logits(logits, prepared.logits)),
        "grid": target.grids[0].to_json(),
    }
    return _File(capture_network(graph, prepared.shape), target, scratch), logits, facts


def int8_file(name: str, target: str, scratch: Path) -> Path:
    """The architecture's int8 file for ``target``. Raises whatever the backend raises."""
    return _quantized(name, target, scratch)[0].artifact.path


def measure_cell(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Everything that is known of a cell, as JSON values. Raises whatever the backend raises."""
    target = targets.get(cell.target)
    prepared = prepare_model(cell.model)
    if cell.target in prepared.spec.cannot:
        raise Refused(prepared.spec.cannot[cell.target])
    file, expected, facts = _make_file(cell, target, prepared, scratch)
    handle = open_file(target, file.artifact.path)
    if handle.refused:
        raise targets.TargetError(handle.reason)
    grade, runner, why = handle.grade, handle.runner, handle.reason
    verdict, pace = _judge_answers(runner, prepared, expected)
    return {
        **asdict(cell),
        "grade": grade,
        "why": why,
        "agreement": verdict,
        **facts,
        "undelegated": dict(sorted(Counter(_kinds(file.artifact)).items())),
        "facts": dict(file.artifact.facts),
        "bytes": file.bytes,
        "latency": _time_file(cell, target, runner, prepared, scratch, pace) if grade == "runtime" else None,
        "seconds": {"writing": round(file.seconds, 1)},
        "machine": machine_name(),
        "memory_bytes": memory.high_water() or 0,
    }


def _make_file(cell: Cell, target: Target, prepared: Prepared, scratch: Path) -> tuple[_File, Tensor, dict[str, Any]]:
    """The file, the logits of the PyTorch model it was made from, and what is known of that model."""
    if cell.precision == "float":
        program = _capture_float(cell.model)
        file = _baseline(cell.model, scratch) if cell.target == "onnx" else _File(program, target, scratch)
        return file, prepared.logits, {}
    return _quantized(cell.model, cell.target, scratch)


def _kinds(artifact: Artifact) -> list[str]:
    """Operators that were left outside; a node's own name says less than what it computes."""
    counts = artifact.facts.get("undelegated", artifact.facts.get("float_operators"))
    return list(Counter(counts).elements()) if isinstance(counts, dict) else list(artifact.undelegated)


def _judge_answers(runner: Runner | None, prepared: Prepared, expected: Tensor) -> tuple[dict[str, Any] | None, float]:
    """Agreement with the model the file was made from, and seconds an image."""
    if runner is None:
        return None, 0.0
    answers: list[Tensor] = []
    start = time.perf_counter()
    for image in prepared.images:
        if len(answers) >= 2 and time.perf_counter() - start > _EVALUATING:
            break
        answers.append(runner(image))
    pace = (time.perf_counter() - start) / len(answers)
    return asdict(compare_logits(torch.cat(answers).float(), expected)), pace


def _time_file(
    cell: Cell, target: Target, runner: Runner | None, prepared: Prepared, scratch: Path, pace: float
) -> dict[str, Any] | None:
    """Milliseconds of one image on one thread, and the ratio to the float ONNX file in the same rounds."""
    if runner is None or "onnx" not in installed_targets()[0]:
        return None
    image = prepared.images[0]
    contenders: dict[str, Callable[[], object]] = {"ours": partial(runner, image)}
    if (cell.target, cell.precision) != ("onnx", "float"):
        onnx = targets.get("onnx")
        assert onnx.load is not None
        contenders["float onnx"] = partial(onnx.load(_baseline(cell.model, scratch).artifact.path, 1), image)
    rounds = count_rounds(_TIMING, len(contenders) * pace)
    times = latency.interleave_calls(contenders, seconds=_TIMING, blocks=rounds)
    ours = times["ours"]
    ratio, interval = statistics.ratio_interval(ours.blocks, times.get("float onnx", ours).blocks)
    return {"p50_ms": ours.percentile(50), "ratio": ratio, "ci95": list(interval), "rounds": rounds}


def count_rounds(seconds: float, one: float) -> int:
    """Rounds to time for which ``seconds`` allow where one takes ``one``: five at least and thirty at most."""
    return max(5, min(30, int(seconds / max(one, 1e-9))))
