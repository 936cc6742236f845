"""A file's answers on emulated Arm processors, held against this machine's on the same images."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.files import parts
from edgewise.files.open import open_runtime
from edgewise.images.feed import feed_images
from edgewise.measure import statistics
from edgewise.measure.agreement import compare_answers
from edgewise.measure.values import Accuracy, Agreement
from edgewise.report.rows import Verdict
from edgewise.store.json_values import encode
from edgewise.store.machine import machine_name
from edgewise.studies.arm64 import inside
from edgewise.studies.arm64.root import Root, run
from edgewise.verify import card, gates
from edgewise.verify.card import Card
from edgewise.verify.gates import Finding, Limits

if TYPE_CHECKING:
    from edgewise.calib_data import Data
    from edgewise.report.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a file answered on one machine."""

    logits: Tensor
    """float32 [n, classes]."""
    ms: NDArray[np.float64]
    """Time of each image, [n]."""


@dataclass(frozen=True, kw_only=True)
class OnMachine:
    """One file on one machine."""

    file: str
    precision: str
    machine: str
    emulated: bool
    """Whether its times are an emulator's, which say nothing about a board."""
    accuracy: Accuracy
    """``vs_baseline``: against this machine, on the same images."""
    agreement: Agreement
    """With this machine's logits."""
    p50_ms: float
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        fields: dict[str, Any] = encode(self)
        return fields


def check_files(
    paths: Sequence[Path], data_name: str, count: int | None, cpus: Sequence[str], root: Root, watch: Watch
) -> list[OnMachine]:
    """Evaluate each file on the first ``count`` test images (None: all), here and on each processor.

    Raises RequestError for a file without its card, of another target or verified on other images, TargetError for one
    that onnxruntime cannot read, EmulationError where the Arm side fails.
    """
    subjects = [(path, *_open_file(path, data_name)) for path in paths]
    rows: list[OnMachine] = []
    for path, own_card, data in subjects:
        number = len(data.test) if count is None else min(count, len(data.test))
        images = feed_images(data.test.batch(torch.arange(number)), own_card, own_card.fed)
        labels = data.test.labels[:number]
        mine = _answer_here(path, images, watch)
        rows.append(
            _make_row(
                path, own_card, machine_name(), mine, mine, labels, Finding("pass", "what the others are held against")
            )
        )
        for cpu in cpus:
            theirs = _answer_there(path, images, cpu, root, watch)
            row = _make_row(path, own_card, f"aarch64 {cpu}", theirs, mine, labels, None)
            watch.detail(f"{path.name} on {cpu}: {row.verdict}, {row.reason}")
            rows.append(row)
    return rows


def _open_file(path: Path, data_name: str) -> tuple[Card, Data]:
    if not path.is_file():
        raise RequestError(f"there is no file {path}")
    own_card = card.read(path)
    if own_card.target != "onnx":
        raise RequestError(f"{path} is for {own_card.target}; only onnx has a runtime for the emulated system")
    if parts.digest(path) != own_card.sha256:
        raise RequestError(f"{path} is not the file its card describes; verify it, or write it again")
    data = card.load_images(own_card, data_name)
    if data.digest != own_card.data_digest:
        raise RequestError(f"{path} was verified on other images than {data_name}; give the --data it was made with")
    return own_card, data


def _answer_here(path: Path, images: Tensor, watch: Watch) -> Answers:
    runner = open_runtime(targets.get("onnx"), path)
    logits, times = [], []
    for index in watch.track(range(len(images)), f"{path.name} on this machine", len(images)):
        start = time.perf_counter()
        logits.append(runner(images[index : index + 1]))
        times.append(1000 * (time.perf_counter() - start))
    return Answers(logits=torch.cat(logits), ms=np.array(times))


def _answer_there(path: Path, images: Tensor, cpu: str, root: Root, watch: Watch) -> Answers:
    """The same inside: the file, the program and the images are copied in, the answers read back."""
    with root.workspace() as folder:
        for source in (*parts.roots(path), Path(inside.__file__)):
            shutil.copy2(source, folder / source.name)
        np.savez(folder / "images.npz", images=images.numpy())
        at = f"/{folder.relative_to(root.path)}"
        names = (Path(inside.__file__).name, path.name, "images.npz", "answers.npz")
        lines = run(root, cpu, *(f"{at}/{name}" for name in names))
        for _ in watch.track(lines, f"{path.name} on {cpu}", math.ceil(len(images) / inside.STEP)):
            pass
        with np.load(folder / "answers.npz", allow_pickle=False) as arrays:
            return Answers(logits=torch.from_numpy(arrays["logits"]), ms=arrays["ms"])


def _make_row(
    path: Path, own_card: Card, name: str, theirs: Answers, mine: Answers, labels: Tensor, finding: Finding | None
) -> OnMachine:
    correct, reference = (_correct_images(answers, labels) for answers in (theirs, mine))
    accuracy = statistics.judge_top1(reference if theirs is mine else correct, reference)
    finding = finding or judge_loss(accuracy, own_card.max_drop)
    return OnMachine(
        file=str(path),
        precision=own_card.row.precision or "",
        machine=name,
        emulated=theirs is not mine,
        accuracy=accuracy,
        agreement=compare_answers(theirs.logits.numpy(), mine.logits.numpy(), own_card.row.precision or "float32"),
        p50_ms=float(np.median(theirs.ms)),
        verdict=finding.verdict,
        reason=finding.reason,
    )


def _correct_images(answers: Answers, labels: Tensor) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = (answers.logits.argmax(1) == labels).numpy()
    return right


def judge_loss(accuracy: Accuracy, max_drop: float) -> Finding:
    """A file may lose as little between machines as it might between steps: ``max_drop``, on the same images."""
    return gates.on_accuracy(accuracy, Limits(max_drop=max_drop), "this machine's")
