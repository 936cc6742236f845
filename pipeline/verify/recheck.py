"""Re-checking a written file: run again, in its runtime, over a whole test set, and held against its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise import targets
from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.files import parts
from edgewise.files.open import Grade, open_file
from edgewise.images import resized
from edgewise.images.preprocess import Fed
from edgewise.images.sizes import Size, show_size
from edgewise.measure import statistics
from edgewise.measure.answers import compute_logits
from edgewise.measure.per_class import with_classes
from edgewise.measure.values import Accuracy
from edgewise.report.classes import summarize_classes
from edgewise.report.numbers import percent
from edgewise.report.rows import Verdict
from edgewise.stage import Track, silent
from edgewise.store.json_values import encode
from edgewise.targets import Runner
from edgewise.verify import card, golden
from edgewise.verify.card import Card
from edgewise.verify.gates import Finding, judge, on_soundness

MOST_MOVED = 0.1
"""Largest change of an answer, as a share of the spread of the card's answers: above what another processor's rounding
of int8 sums does, below what a wrong mean or deviation does."""


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """What a file does now."""

    path: Path
    target: str
    sha256: str
    grade: Grade
    accuracy: Accuracy | None
    verdict: Verdict
    reason: str
    fed: Fed = "normalised"
    size: Size = (0, 0)
    """Height and width of the images it was given."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; accuracy is compared with the card's, so no baseline stands in it."""
        accuracy = self.accuracy
        shown = ("top1", "n", "ci95", "balanced", "top5", "recall")
        found = None if accuracy is None else {name: encode(getattr(accuracy, name)) for name in shown}
        return {
            "artifact": str(self.path),
            "target": self.target,
            "sha256": self.sha256,
            "verification": self.grade,
            "accuracy": found,
            "verdict": self.verdict,
            "reason": self.reason,
            "fed": self.fed,
            "input_size": list(self.size),
        }

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.target}, sha256 {self.sha256[:16]}…)"]
        if self.accuracy is not None:
            low, high = self.accuracy.ci95
            lines.append(
                f"top-1 {percent(self.accuracy.top1)} % on {self.accuracy.n:,} images "
                f"(95 % interval {percent(low)} to {percent(high)}), "
                f"fed {'bytes' if self.fed == 'bytes' else 'normalised images'} at {show_size(self.size)}"
            )
            lines += filter(None, [summarize_classes(self.accuracy)])
        return "\n".join([*lines, f"graded {self.grade}; {self.verdict}: {self.reason}"])


def recheck_file(path: Path, data_name: str | None = None, track: Track = silent, size: Size | None = None) -> Recheck:
    """Hold a file against its card: its digest, size and golden answers, and its accuracy over the test part of a data set.

    ``data_name`` None: the golden images alone are run. A data set's images are resized to ``size`` (height, width), or
    where it is None to that which the file was judged on. A file that its runtime cannot read fails. Raises RequestError
    for a path that is no file of a known target or has no card.
    """
    if not path.exists():
        raise RequestError(f"there is no file {path}")
    kept = card.read(path)
    target = targets.get(kept.target)
    size = size or kept.input_shape[1:]
    data = None if data_name is None else _images(path, kept, card.load_images(kept, data_name), size)
    digest = parts.digest(path)
    opened = open_file(target, path)
    grade, runner = opened.grade, opened.runner
    refused = [Finding("fail", opened.reason)] if opened.refused else []
    accuracy = None
    findings = [on_digest(digest, kept), on_size(parts.size(path), kept), *refused]
    if runner is not None and (kept.golden is not None or data is None):
        findings.append(on_golden(path, kept, runner))
    if runner is not None and data is not None:
        answers = compute_logits(runner, data.test, kept, track=track, label=target.name, fed=kept.fed)
        found = statistics.accuracy_of(answers, answers, data.test.labels)
        accuracy = with_classes(found, answers, data.test.labels, data.classes)
        findings.append(on_soundness(accuracy.soundness))
        findings.append(on_answers(answers, data.digest, kept))
    if data is not None or runner is None:
        findings.append(on_accuracy(accuracy, data.digest if data else "", kept))
    finding = judge(*findings)
    return Recheck(
        path=path,
        target=target.name,
        sha256=digest,
        grade=grade,
        accuracy=accuracy,
        verdict=finding.verdict,
        reason=finding.reason,
        fed=kept.fed,
        size=size,
    )


def _images(path: Path, kept: Card, data: Data, size: Size) -> Data:
    """The data as the file takes it. Raises RequestError where no resizing makes it so."""
    if data.shape[0] != kept.input_shape[0]:
        raise RequestError(f"{path.name} takes images {kept.input_shape}, the data has {data.shape}")
    if not kept.takes(size):
        listed = ", ".join(map(show_size, kept.accepted.choices))
        raise RequestError(
            f"{path.name} takes images of {listed}{' and all between' if kept.ranged else ''}, not {show_size(size)}"
        )
    return resized.resize_data(data, size)


def on_digest(digest: str, kept: Card) -> Finding:
    """The file must be the one that was verified."""
    if digest == kept.sha256:
        return Finding("pass", "the file that was verified")
    return Finding(
        "fail",
        f"this is not the file that was verified: its card says sha256 {kept.sha256[:16]}…, found {digest[:16]}…",
    )


def on_size(size: int, kept: Card) -> Finding:
    """It must be as large as it was: an unpruned or unquantized network is larger."""
    if kept.row.bytes in (None, size):
        return Finding("pass", f"{size:,} bytes, as its card says")
    return Finding("fail", f"its card says {kept.row.bytes:,} bytes, found {size:,}")


def on_golden(path: Path, kept: Card, runner: Runner) -> Finding:
    """It must answer the golden images as it did."""
    if kept.golden is None:
        return Finding("not-checked", "the card holds no golden answers")
    try:
        images = golden.read(path, kept.golden)
    except RequestError as error:
        return Finding("not-checked", str(error))
    answers = compute_logits(runner, images, kept, fed=kept.fed)
    differs = golden.describe_change(answers, images, kept.golden, golden.runtime_of(targets.get(kept.target)))
    if differs:
        return Finding("fail", differs)
    return Finding("pass", f"its answers to {len(images)} golden images are those it gave when it was made")


def on_accuracy(accuracy: Accuracy | None, data_digest: str, kept: Card) -> Finding:
    """It must be as accurate as it was. ``accuracy`` is None where nothing on this machine can run the file."""
    if accuracy is None:
        return Finding("not-checked", f"{kept.target} cannot be run or evaluated on this machine")
    if kept.row.accuracy is None or data_digest != kept.data_digest:
        return Finding("not-checked", "the card holds no accuracy on these images to compare with")
    before = kept.row.accuracy.top1
    if before - accuracy.top1 > kept.max_drop:
        return Finding("fail", f"top-1 was {percent(before)} % when it was made, {percent(accuracy.top1)} % now")
    return Finding("pass", f"top-1 was {percent(before)} % when it was made")


def on_answers(answers: Tensor, data_digest: str, kept: Card) -> Finding:
    """It must answer the first test images much as its card says; ``answers``: [N, classes], for the test images."""
    moved = _moved(answers, kept) if data_digest == kept.data_digest else 0.0
    if moved <= MOST_MOVED:
        return Finding("pass", "its answers are those on its card")
    return Finding(
        "fail",
        f"its answers moved by {moved:.0%} of their spread from those on its card ({MOST_MOVED:.0%} allowed), for the "
        f"same {len(kept.answers)} images: it is fed, or prepares its images, otherwise than when it was made",
    )


def _moved(answers: Tensor, kept: Card) -> float:
    """How far the answers to the card's images are from those on it, at most, as a share of the spread of those."""
    if not kept.answers:
        return 0.0
    before = torch.tensor(kept.answers)
    spread = float(before.max() - before.min()) or 1.0
    return float((answers[: len(before)] - before).abs().max()) / spread
