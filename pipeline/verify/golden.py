"""Golden images: a few test images beside a written file, and what the file answered to them when it was made.

They are bytes, as a camera gives them, so that preprocessing is checked with the rest; with them a file is re-checked on
a machine that has no data set.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from edgewise.calib_data import Part
from edgewise.errors import EvidenceError
from edgewise.measure.agreement import EXACT, moved_answers
from edgewise.store.entries import file_digest
from edgewise.store.machine import cpu_name, emulator_name
from edgewise.store.reading import read_regular
from edgewise.store.whole import write_whole
from edgewise.targets import NPM, Target, versions

_SUFFIX = ".golden.safetensors"

MOST_IMAGES = 16
MOST_BYTES = 1_000_000
"""Of all golden images together."""

LARGEST = 64_000_000
"""Of the file with the images and the answers: at least two images are kept, however large."""

NEAR = 2.0**-10
"""Smallest share that is allowed on another processor."""


@dataclass(frozen=True)
class Golden:
    """Images and answers. It is a ``Part`` of a data set, whose labels are the file's own classes."""

    images: Tensor
    """uint8 [k, C, H, W]."""
    index: Tensor
    """int64 [k], their places in the test part."""
    answers: Tensor
    """float32 [k, classes]."""

    @property
    def labels(self) -> Tensor:
        """int64 [k]."""
        return self.answers.argmax(1)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Tensor:
        """uint8 [B, C, H, W]."""
        return self.images[index]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far golden answers may move on another processor, in units of the answers.

    It is what the file itself differed by from its PyTorch model over the whole test set: a runtime that rounds or adds
    otherwise moves answers by about as much.
    """

    worst: float
    """Largest difference of one answer."""
    mean: float
    """Mean difference over all golden answers."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a card says of the golden images beside its file."""

    sha256: str
    count: int
    index: tuple[int, ...]
    """The images' places in the test part."""
    cpu: str
    """The processor that gave the answers."""
    tolerance: Tolerance
    architecture: str = ""
    """Of that processor, as its system calls it; empty in cards of before it was kept."""
    runtime: str = ""
    """The build that gave them: package and version."""
    emulator: str = ""
    """What emulated the processor; empty: none."""

    def was_made_here(self, runtime: str) -> bool:
        """Whether this very place gave the answers, so that they must come again all but exactly.

        The same processor's name is not enough: another build rounds otherwise, and under an emulator the name is that
        of the processor beneath it, whose kernels are not those that run.
        """
        if emulator_name() or self.emulator or self.cpu != cpu_name():
            return False
        return not self.architecture or (self.architecture, self.runtime) == (platform.machine(), runtime)


def path_of(artifact: Path) -> Path:
    """Where a file's golden images lie."""
    return artifact.with_name(artifact.name + _SUFFIX)


def choose(part: Part) -> Golden:
    """Images spread evenly over the test part, as many as are allowed, without answers yet."""
    size = part.batch(torch.tensor([0])).numel()
    count = max(2, min(MOST_IMAGES, MOST_BYTES // size, len(part)))
    index = torch.tensor(sorted({round(i * (len(part) - 1) / (count - 1)) for i in range(count)}))
    return Golden(part.batch(index), index, torch.zeros(len(index), 0))


def can_compare(answers: Tensor, reference: Tensor) -> bool:
    """Whether distances between both, [N, classes], are finite numbers: those of a network that diverged are not."""
    return all(bool((values - values.min()).isfinite().all()) for values in (answers, reference, answers - reference))


def tolerance(answers: Tensor, reference: Tensor) -> Tolerance:
    """From a file's answers and its PyTorch model's, both [N, classes], over the test set."""
    spread, distance = float(reference.max() - reference.min()), (answers - reference).abs()
    return Tolerance(worst=max(float(distance.max()), NEAR * spread), mean=max(float(distance.mean()), EXACT * spread))


def write(artifact: Path, golden: Golden, allowed: Tolerance, runtime: str = "") -> Record:
    """Keep the golden images and answers beside a delivered file; ``runtime``: as ``runtime_of`` names it."""
    place = path_of(artifact)
    tensors = {"images": golden.images, "index": golden.index, "answers": golden.answers}
    write_whole(place, save({name: value.contiguous() for name, value in tensors.items()}))
    return Record(
        sha256=file_digest(place),
        count=len(golden),
        index=tuple(golden.index.tolist()),
        cpu=cpu_name(),
        tolerance=allowed,
        architecture=platform.machine(),
        runtime=runtime,
        emulator=emulator_name(),
    )


_RUNTIMES = ("onnxruntime", "executorch", "coremltools", "openvino", "ai_edge_litert")


def runtime_of(target: Target) -> str:
    """The package that runs a target's files, and its version; empty for a target without one of its own."""
    python = (name for name in _RUNTIMES if name in target.needs)
    package = next((f"{NPM}{name}" for name in target.npm), next(python, None))
    return "" if package is None else f"{package} {versions([package])[package]}"


def remove(artifact: Path) -> None:
    """Take away those of an earlier file of that name, which nothing could give anew."""
    path_of(artifact).unlink(missing_ok=True)


def read(artifact: Path, record: Record) -> Golden:
    """The golden images that a card's ``record`` means. Raises EvidenceError where they are missing or others."""
    place = path_of(artifact)
    try:
        content = read_regular(place, LARGEST)
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise ValueError("it is not the file that the card names")
        return _check_tensors(load(content))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise EvidenceError(
            f"cannot read {place}: {error}. A run writes it beside its file and card; keep the three together"
        ) from error


def _check_tensors(tensors: Mapping[str, Tensor]) -> Golden:
    """The three tensors, each of the type and the shape that was written. Raises ValueError for others."""
    images, index, answers = tensors["images"], tensors["index"], tensors["answers"]
    shapes = f"{tuple(images.shape)}, {tuple(index.shape)}, {tuple(answers.shape)}"
    kinds = (images.dtype, index.dtype, answers.dtype) == (torch.uint8, torch.int64, torch.float32)
    if not kinds or (images.dim(), index.dim(), answers.dim()) != (4, 1, 2):
        raise ValueError(
            f"wanted uint8 images [k, C, H, W], int64 [k] and float32 answers [k, classes], found {shapes}"
        )
    if not len(images) == len(index) == len(answers) > 0:
        raise ValueError(f"wanted as many answers as images, found {shapes}")
    return Golden(images, index, answers)


def describe_change(answers: Tensor, golden: Golden, record: Record, runtime: str = "") -> str:
    """How the answers ``answers`` [k, classes] differ from the golden ones beyond what is allowed; empty if they do not.

    ``runtime``: what gave them, as ``runtime_of`` names it.
    """
    expected = golden.answers
    if answers.shape != expected.shape:
        return f"it answers {list(answers.shape)} to {len(golden)} golden images, wanted {list(expected.shape)}"
    if not bool(answers.isfinite().all()):
        return "an answer to a golden image is not a finite number"
    same = record.was_made_here(runtime)
    elsewhere = None if same else (record.tolerance.worst, record.tolerance.mean)
    distance = moved_answers(answers.numpy(), expected.numpy(), elsewhere)
    if distance.within:
        return ""
    where = "in the same build on the same" if same else "in another build or on another"
    return (
        f"its answers to {len(golden)} golden images moved by up to {distance.worst:.3g}, {distance.mean:.3g} in the mean "
        f"({distance.allowed_worst:.3g} and {distance.allowed_mean:.3g} allowed {where} processor), {distance.changed} to another "
        "class: its weights, or how its images are prepared, are not those it was verified with"
    )
