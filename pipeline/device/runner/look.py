"""One file in a process of its own: loaded, asked about the golden images and the labelled ones, its memory measured."""

from __future__ import annotations

import base64
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import system as runner_system
from .contents import Contents, on_disk_digest
from .feed import feed
from .runtimes import Run, Runtime


def look(contents: Contents, file: dict[str, Any], runtime: Runtime, threads: int) -> dict[str, Any]:
    """What the file answers, and what loading it costs. Times in milliseconds, memory in bytes."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path = contents.unpack(file, Path(folder))
        digest = on_disk_digest(path)
        images = contents.slice()
        first = feed(images[:1], file)
        # However it is refused, a file that is not there has brought in the runtime's libraries.
        with contextlib.suppress(Exception):
            runtime.load(path.with_name(f"no {path.name}"), threads)
        runner_system.set_back()
        before = runner_system.high_water()
        run, load_ms = loaded(runtime, path, threads)
        first_ms = _milliseconds(lambda: run(first))
        after = runner_system.high_water()
        golden = contents.golden(file)
        answers = answered(run, file, golden["images"]) if golden else None
        classes = answered(run, file, images).argmax(1)
        again_ms = loaded(runtime, path, threads)[1]
    return {
        "sha256": digest,
        "golden_answers": None if answers is None else base64.b64encode(answers.astype("<f4").tobytes()).decode(),
        "answers": encode_classes(classes),
        "load_ms": {"first": load_ms, "again": again_ms},
        "first_call_ms": first_ms,
        "peak_memory_bytes": None if before is None or after is None else max(0, after - before),
        "seconds": time.perf_counter() - start,
    }


def loaded(runtime: Runtime, path: Path, threads: int) -> tuple[Run, float]:
    """The file in its runtime, and the milliseconds that took."""
    start = time.perf_counter()
    run = runtime.load(path, threads)
    return run, 1000 * (time.perf_counter() - start)


def answered(run: Run, file: dict[str, Any], images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, classes], image by image."""
    return np.concatenate([run(feed(images[i : i + 1], file)) for i in range(len(images))])


def encode_classes(classes: np.ndarray[Any, Any]) -> str:
    """Class numbers as hexadecimal digits, four each."""
    return classes.astype(">u2").tobytes().hex()


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def summary(found: dict[str, Any], labels: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Top-1 on the slice, as the result states it."""
    classes = np.frombuffer(bytes.fromhex(found["answers"]), ">u2").astype(np.int64)
    return {"top1": float((classes == labels).mean()), "n": len(labels)}
