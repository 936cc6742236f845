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
from edgewise.store.machine import machine
from edgewise.studies.architectures.cells import Cell, installed_targets
from edgewise.studies.architectures.network import (
    Prepared,
    agreement,
    answers,
    calibrated,
    capture,
    float_islands,
    prepare,
)
from edgewise.targets import Artifact, Runner, Target

_EVALUATING = 8.0
"""Seconds after which no further image is evaluated; two always are."""
_TIMING = 4.0
"""Seconds of timing, for both contenders together, as far as at least five rounds allow."""


class Refused(Exception):
    """The architecture's own file says that it cannot go to this target."""


@lru_cache(maxsize=1)
def _prepared(name: str) -> Prepared:
    return prepare(models.get(name))


@lru_cache(maxsize=1)
def _floating(name: str) -> torch.export.ExportedProgram:
    prepared = _prepared(name)
    return capture(prepared.folded, prepared.shape)


@lru_cache(maxsize=2)
def _graph(name: str, quantizer: Any) -> GraphModule:
    return calibrated(_prepared(name), quantizer)


class _File:
    """A written file in a folder that goes when the file is no longer needed."""

    def __init__(self, program: torch.export.ExportedProgram, target: Target, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=scratch)
        started = time.perf_counter()
        self.artifact: Artifact = target.export(program, Path(self._folder.name) / f"net{target.suffix}", targets.USUAL)
        self.seconds = time.perf_counter() - started

    @property
    def bytes(self) -> int:
        """Of the file and of what it wants beside it."""
        return sum(path.stat().st_size for path in Path(self._folder.name).rglob("*") if path.is_file())


@lru_cache(maxsize=1)
def _baseline(name: str, scratch: Path) -> _File:
    """The float ONNX file that every time is compared with."""
    return _File(_floating(name), targets.get("onnx"), scratch)


def measure(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Everything that is known of a cell, as JSON values. Raises whatever the backend raises."""
    target = targets.get(cell.target)
    prepared = _prepared(cell.model)
    if cell.target in prepared.spec.cannot:
        raise Refused(prepared.spec.cannot[cell.target])
    made, wanted, found = _made(cell, target, prepared, scratch)
    opened = open_file(target, made.artifact.path)
    if opened.refused:
        raise targets.TargetError(opened.reason)
    grade, runner, why = opened.grade, opened.runner, opened.reason
    judged, pace = _judged(runner, prepared, wanted)
    return {
        **asdict(cell),
        "grade": grade,
        "why": why,
        "agreement": judged,
        **found,
        "undelegated": dict(sorted(Counter(_kinds(made.artifact)).items())),
        "facts": dict(made.artifact.facts),
        "bytes": made.bytes,
        "latency": _timed(cell, target, runner, prepared, scratch, pace) if grade == "runtime" else None,
        "seconds": {"writing": round(made.seconds, 1)},
        "machine": machine(),
        "memory_bytes": memory.high_water() or 0,
    }


def _made(cell: Cell, target: Target, prepared: Prepared, scratch: Path) -> tuple[_File, Tensor, dict[str, Any]]:
    """The file, the logits of the PyTorch model it was made from, and what is known of that model."""
    if cell.precision == "float":
        program = _floating(cell.model)
        made = _baseline(cell.model, scratch) if cell.target == "onnx" else _File(program, target, scratch)
        return made, prepared.logits, {}
    graph = _graph(cell.model, target.quantizer(target.grids[0]))
    logits = answers(graph, prepared.images)
    found = {
        "islands": dict(sorted(float_islands(graph).items())),
        "drift": asdict(agreement(logits, prepared.logits)),
        "grid": target.grids[0].to_json(),
    }
    return _File(capture(graph, prepared.shape), target, scratch), logits, found


def _kinds(artifact: Artifact) -> list[str]:
    """Operators that were left outside; a node's own name says less than what it computes."""
    counts = artifact.facts.get("undelegated", artifact.facts.get("float_operators"))
    return list(Counter(counts).elements()) if isinstance(counts, dict) else list(artifact.undelegated)


def _judged(runner: Runner | None, prepared: Prepared, wanted: Tensor) -> tuple[dict[str, Any] | None, float]:
    """Agreement with the model the file was made from, and seconds an image."""
    if runner is None:
        return None, 0.0
    found: list[Tensor] = []
    started = time.perf_counter()
    for image in prepared.images:
        if len(found) >= 2 and time.perf_counter() - started > _EVALUATING:
            break
        found.append(runner(image))
    pace = (time.perf_counter() - started) / len(found)
    return asdict(agreement(torch.cat(found).float(), wanted)), pace


def _timed(
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
    rounds = max(5, min(30, int(_TIMING / max(2 * pace, 1e-9))))
    found = latency.interleave_calls(contenders, seconds=_TIMING, blocks=rounds)
    ours = found["ours"]
    ratio, interval = statistics.ratio_interval(ours.blocks, found.get("float onnx", ours).blocks)
    return {"p50_ms": ours.percentile(50), "ratio": ratio, "ci95": list(interval), "rounds": rounds}
