"""One architecture's int8 files for every runtime of this machine, timed in the same rounds: which runtime to choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edgewise import models, targets
from edgewise.files.open import open_file
from edgewise.measure import latency, memory, statistics
from edgewise.store import sources
from edgewise.store.entries import key_of
from edgewise.store.machine import machine_name
from edgewise.studies.architectures.cells import Cell, installed_targets
from edgewise.studies.architectures.keys import cell_key
from edgewise.studies.architectures.measure import baseline_file, count_rounds, int8_file, prepare_model
from edgewise.studies.architectures.network import answer_images, compare_logits
from edgewise.targets import Runner

_TIMING = 12.0
"""Seconds of timing for all contenders together, as far as at least five rounds allow."""
_IMAGES = 4
"""Photographs' crops whose answers are compared with the float network's."""


def timed_targets(name: str) -> list[str]:
    """Installed targets whose int8 files run on this machine, and that the architecture goes to."""
    cannot = models.get(name).cannot
    found = [targets.get(target) for target in installed_targets()[0]]
    return [target.name for target in found if target.load is not None and target.grids and target.name not in cannot]


def together_key(name: str, compared: Sequence[str]) -> str:
    """Digest of all that a comparison of these targets' files depends on, but the machine. Raises MissingBackend."""
    here = Path(__file__)
    files = [cell_key(Cell(model=name, target=target, precision="int8")) for target in sorted(compared)]
    return key_of(code=sources.source_digest(here, within=here.parent), files=files)


def is_current(name: str, comparison: Mapping[str, Any]) -> bool:
    """Whether a kept comparison is one of the present code; of what is not installed here nothing can tell."""
    try:
        return bool(comparison.get("key") == together_key(name, comparison["compared"]))
    except targets.MissingBackend:
        return True


def measure_together(name: str, scratch: Path) -> dict[str, Any]:
    """For each runtime the file's distance from the float network and its time beside the float ONNX file's, as JSON values.

    A runtime that cannot have the file is named with its reason.
    """
    prepared, runners, refused = prepare_model(name), dict[str, Runner](), dict[str, str]()
    for target in timed_targets(name):
        try:
            runners[target] = _open_runner(name, target, scratch)
        except Exception as error:  # a backend raises what it likes; the others are measured
            refused[target] = f"{type(error).__name__}: {str(error)[:300]}"
    image, given = prepared.images[0], prepared.images[:_IMAGES]
    onnx = targets.get("onnx")
    assert onnx.load is not None
    contenders: dict[str, Callable[[], object]] = {"float": partial(onnx.load(baseline_file(name, scratch), 1), image)}
    contenders |= {target: partial(runner, image) for target, runner in runners.items()}
    times = latency.interleave_calls(contenders, seconds=_TIMING, blocks=count_rounds(_TIMING, _time_round(contenders)))
    files = {}
    for target, runner in runners.items():
        ratio, interval = statistics.ratio_interval(times[target].blocks, times["float"].blocks)
        distance = compare_logits(answer_images(runner, given), prepared.logits)
        files[target] = {
            "ratio": ratio,
            "ci95": list(interval),
            "p50_ms": times[target].percentile(50),
            "distance": asdict(distance),
        }
    return {
        "files": files,
        "refused": refused,
        "float_ms": times["float"].percentile(50),
        "machine": machine_name(),
        "memory_bytes": memory.high_water() or 0,
    }


def _open_runner(name: str, target: str, scratch: Path) -> Runner:
    handle = open_file(targets.get(target), int8_file(name, target, scratch))
    if handle.refused or handle.runner is None or handle.grade != "runtime":
        raise targets.TargetError(handle.reason or f"graded {handle.grade}")
    return handle.runner


def _time_round(contenders: dict[str, Callable[[], object]]) -> float:
    """Seconds that one call of each takes, the second of two: the first makes ready."""
    for call in contenders.values():
        call()
    start = time.perf_counter()
    for call in contenders.values():
        call()
    return time.perf_counter() - start
