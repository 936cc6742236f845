"""Re-checking a written file: run again, in its runtime, over a whole test set, and held against its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise import targets
from edgewise.calib_data import Data
from edgewise.errors import CrashError, EvidenceError, RequestError
from edgewise.files import parts
from edgewise.files.isolated import opened
from edgewise.files.open import Grade
from edgewise.images import resized
from edgewise.images.preprocess import Fed
from edgewise.images.resized import sampled
from edgewise.images.sizes import Size, show_size
from edgewise.measure import statistics
from edgewise.measure.answers import compute_logits
from edgewise.measure.per_class import with_classes
from edgewise.measure.values import Accuracy, Agreement
from edgewise.report.classes import summarize_classes
from edgewise.report.numbers import percent
from edgewise.report.rows import Verdict
from edgewise.stage import Track, silent
from edgewise.store.json_values import decode, encode
from edgewise.targets import Runner, Target
from edgewise.verify import card, golden, manifest, signature
from edgewise.verify.card import Card
from edgewise.verify.gates import Finding, judge, on_soundness
from edgewise.verify.manifest import Problem

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
        lines = [f"{self.path} ({self.target or 'untrusted'}, sha256 {self.sha256[:16]}…)"]
        if self.accuracy is not None:
            low, high = self.accuracy.ci95
            lines.append(
                f"top-1 {percent(self.accuracy.top1)} % on {self.accuracy.n:,} images "
                f"(95 % interval {percent(low)} to {percent(high)}), "
                f"fed {'bytes' if self.fed == 'bytes' else 'normalised images'} at {show_size(self.size)}"
            )
            lines += filter(None, [summarize_classes(self.accuracy)])
        return "\n".join([*lines, f"graded {self.grade}; {self.verdict}: {self.reason}"])


def recheck_file(
    path: Path,
    data_name: str | None = None,
    track: Track = silent,
    size: Size | None = None,
    *,
    checkpoint: Path | None = None,
    key: Path | None = None,
) -> Recheck:
    """Hold a file against its card: all it consists of, its golden answers, its accuracy over the test part of a data set.

    Every file is held against the manifest before anything is parsed, and only a file that has not changed is opened, in a
    process of its own. ``data_name`` None: the golden images alone are run. A data set's images are resized to ``size``
    (height, width), or where it is None to that which the file was judged on. ``checkpoint``: its network, where the file
    was moved away from it; ``key``: the public half of the one that it has to be signed with. Raises RequestError for a path that is no file, and for images that it does not take.
    """
    if not parts.is_artifact(path):
        raise RequestError(f"there is no file {path}" if not path.exists() else f"{path} is no regular file")
    try:
        if key is not None:
            signature.verify(path, key)
        entries = manifest.read(path)
        wrong = manifest.problems(path, entries, checkpoint)
        kept = None if _touches_card(path, wrong) else card.read(path)
    except EvidenceError as error:
        return _untrusted(path, str(error))
    evidence = [on_files(entries, wrong, path, key), *(on_card(path, kept) if kept else [])]
    if kept is None or any(finding.verdict == "fail" for finding in evidence):
        return _untrusted(path, judge(*evidence).reason, kept)
    return _examined(path, kept, evidence, data_name, track, size)


def _touches_card(path: Path, wrong: Sequence[Problem]) -> bool:
    return any(problem.name == card.path_of(path).name for problem in wrong)


def _untrusted(path: Path, reason: str, kept: Card | None = None) -> Recheck:
    """A file that is not opened, since it or the evidence for it is not what was written."""
    return Recheck(
        path=path,
        target=kept.target if kept else "",
        sha256=parts.digest(path),
        grade="written",
        accuracy=None,
        verdict="fail",
        reason=reason,
        fed=kept.fed if kept else "normalised",
        size=kept.input_shape[1:] if kept else (0, 0),
    )


def _examined(
    path: Path, kept: Card, evidence: Sequence[Finding], data_name: str | None, track: Track, size: Size | None
) -> Recheck:
    """What a file that has not changed does now."""
    target = targets.get(kept.target)
    size = size or kept.input_shape[1:]
    judged = None if data_name is None else resized.resize_data(card.load_images(kept, data_name), kept.input_shape[1:])
    data = None if judged is None else _images(path, kept, judged, size)
    grade, accuracy, findings = _grade(target), None, list(evidence)
    try:
        if grade != "written":
            with opened(target.name, path) as runner:
                if kept.golden is not None or data is None:
                    findings.append(on_golden(path, kept, runner))
                if data is not None and judged is not None:
                    answers = compute_logits(runner, data.test, kept, track=track, label=target.name, fed=kept.fed)
                    accuracy, more = _on_data(answers, data, judged, kept, size)
                    findings += more
    except (targets.TargetError, CrashError) as error:
        grade, findings = "written", [*findings, Finding("fail", str(error))]
    if grade == "written":
        findings.append(Finding("not-checked", f"{kept.target} cannot be run or evaluated on this machine"))
    finding = judge(*findings)
    return Recheck(
        path=path,
        target=target.name,
        sha256=kept.sha256,
        grade=grade,
        accuracy=accuracy,
        verdict=finding.verdict,
        reason=finding.reason,
        fed=kept.fed,
        size=size,
    )


def _grade(target: Target) -> Grade:
    """The best evaluator of a target's files on this host."""
    return "runtime" if target.load is not None else "reference" if target.reference is not None else "written"


def _on_data(answers: Tensor, data: Data, judged: Data, kept: Card, size: Size) -> tuple[Accuracy, list[Finding]]:
    """Accuracy from a file's answers to ``data``, at ``size``; ``judged``: the same images at the size it was judged at."""
    found = statistics.accuracy_of(answers, answers, data.test.labels)
    accuracy = with_classes(found, answers, data.test.labels, data.classes)
    if judged.digest != kept.data_digest:
        return accuracy, [on_images(judged, kept)]
    if size != kept.input_shape[1:]:
        return accuracy, [on_other_size(answers, data, kept, size)]
    return accuracy, [on_soundness(accuracy.soundness), on_answers(answers, kept), on_accuracy(accuracy, kept)]


def _images(path: Path, kept: Card, data: Data, size: Size) -> Data:
    """The data as the file takes it at ``size``. Raises RequestError where no resizing makes it so."""
    if data.shape[0] != kept.input_shape[0]:
        raise RequestError(f"{path.name} takes images {kept.input_shape}, the data has {data.shape}")
    if not kept.takes(size):
        listed = ", ".join(map(show_size, kept.accepted.choices))
        raise RequestError(
            f"{path.name} takes images of {listed}{' and all between' if kept.ranged else ''}, not {show_size(size)}"
        )
    return resized.resize_data(data, size)


def on_files(entries: Mapping[str, str], wrong: Sequence[Problem], path: Path, key: Path | None = None) -> Finding:
    """All files that it and the evidence for it consist of must be those that were written."""
    if wrong:
        return Finding(
            "fail", f"this is not the file that was verified, with its evidence: {'; '.join(map(str, wrong))}"
        )
    apart = ", but for its network, which was left where it was made" if manifest.is_moved(path) else ""
    signed = "" if key is None else f", signed with the private half of {key.name}"
    return Finding("pass", f"all {len(entries)} files are those that were written{apart}{signed}")


def on_card(path: Path, kept: Card) -> list[Finding]:
    """The card must be that of this file: of its digest, its size, and its golden images."""
    digest, size = parts.digest(path), parts.size(path)
    found = []
    if digest != kept.sha256:
        found.append(
            f"this is not the file that was verified: its card says sha256 {kept.sha256[:16]}…, found {digest[:16]}…"
        )
    if kept.row.bytes not in (None, size):
        found.append(f"its card says {kept.row.bytes:,} bytes, found {size:,}")
    if kept.golden is not None and not golden.path_of(path).is_file():
        found.append(f"{golden.path_of(path).name}, which its card names, is missing")
    return [Finding("fail", reason) for reason in found]


def on_golden(path: Path, kept: Card, runner: Runner) -> Finding:
    """It must answer the golden images as it did."""
    if kept.golden is None:
        return Finding("not-checked", "the card holds no golden answers")
    try:
        images = golden.read(path, kept.golden)
    except EvidenceError as error:
        return Finding("fail", str(error))
    answers = compute_logits(runner, images, kept, fed=kept.fed)
    differs = golden.describe_change(answers, images, kept.golden, golden.runtime_of(targets.get(kept.target)))
    if differs:
        return Finding("fail", differs)
    return Finding("pass", f"its answers to {len(images)} golden images are those it gave when it was made")


def on_images(data: Data, kept: Card) -> Finding:
    """The images must be those that it was judged on, or there is nothing to hold its accuracy against."""
    return Finding(
        "fail",
        f"these are not the images it was verified on: its card says digest {kept.data_digest[:16]}…, {data.name} has "
        f"{data.digest[:16]}…; name the data set of recipe {kept.recipe!r} with --data",
    )


def on_accuracy(accuracy: Accuracy, kept: Card) -> Finding:
    """It must be as accurate as it was, on the same images."""
    if kept.row.accuracy is None:
        return Finding("not-checked", "the card holds no accuracy to compare with")
    return _on_top1(accuracy.top1, kept.row.accuracy.top1, kept)


def on_other_size(answers: Tensor, data: Data, kept: Card, size: Size) -> Finding:
    """At a size that it was tried at when it was made, it must be as accurate as it was there, on the same images.

    ``answers``: [N, classes], for the test images at ``size``.
    """
    try:
        tried = decode(tuple[_Tried, ...], kept.row.facts.get("at_other_sizes", []), "at_other_sizes")
    except ValueError as error:
        return Finding("fail", f"its card is damaged: {error}")
    there = [entry for entry in tried if (entry.height, entry.width) == size]
    if not there:
        return Finding(
            "not-checked", f"it was not tried at {show_size(size)} when it was made; nothing to compare with"
        )
    index = sampled(len(data.test), max(1, there[0].agreement.n))
    top1 = float((answers[index].argmax(1) == data.test.labels[index]).to(torch.float64).mean())
    return _on_top1(top1, there[0].top1, kept, f" at {show_size(size)}, on {len(index)} images,")


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What a card says of a file at a size that it was not captured at."""

    height: int
    width: int
    top1: float
    agreement: Agreement


def _on_top1(now: float, before: float, kept: Card, where: str = "") -> Finding:
    if before - now > kept.max_drop:
        return Finding("fail", f"top-1{where} was {percent(before)} % when it was made, {percent(now)} % now")
    return Finding("pass", f"top-1{where} was {percent(before)} % when it was made")


def on_answers(answers: Tensor, kept: Card) -> Finding:
    """It must answer the first test images much as its card says; ``answers``: [N, classes], for the test images."""
    moved = _moved(answers, kept)
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
