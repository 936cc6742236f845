"""Re-checking a written file: run again, in its runtime, over a whole test set, and held against its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise import targets
from edgewise.calib_data import Data
from edgewise.errors import CrashError, EvidenceError, RequestError
from edgewise.files import parts
from edgewise.files.isolated import open_isolated
from edgewise.files.open import Grade
from edgewise.images import resized
from edgewise.images.preprocess import Fed
from edgewise.images.resized import sample_evenly
from edgewise.images.sizes import Size, show_size
from edgewise.measure import statistics
from edgewise.measure.answers import compute_logits
from edgewise.measure.per_class import with_classes
from edgewise.measure.values import Accuracy, Agreement
from edgewise.report.classes import summarize_classes
from edgewise.report.numbers import percent
from edgewise.report.rows import Verdict
from edgewise.stage import Track, track_silently
from edgewise.store.json_values import decode, encode
from edgewise.targets import Runner, Target
from edgewise.verify import card, golden, manifest, signature
from edgewise.verify.card import Card
from edgewise.verify.gates import Finding, on_soundness, worst_finding
from edgewise.verify.held import hold_copy
from edgewise.verify.manifest import Problem

MOST_MOVED = 0.1
"""Largest change of an answer, as a share of the spread of the card's answers: above what another processor's rounding
of int8 sums does, below what a wrong mean or deviation does."""


_WORDS: dict[Fed, str] = {
    "normalised": "normalised images", "channels-last": "normalised images, channels last,", "bytes": "bytes",
}  # fmt: skip


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
        names = ("top1", "n", "ci95", "balanced", "top5", "recall")
        figures = None if accuracy is None else {name: encode(getattr(accuracy, name)) for name in names}
        return {
            "artifact": str(self.path),
            "target": self.target,
            "sha256": self.sha256,
            "verification": self.grade,
            "accuracy": figures,
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
                f"fed {_WORDS[self.fed]} at {show_size(self.size)}"
            )
            lines += filter(None, [summarize_classes(self.accuracy)])
        return "\n".join([*lines, f"graded {self.grade}; {self.verdict}: {self.reason}"])


def recheck_file(
    path: Path,
    data_name: str | None = None,
    track: Track = track_silently,
    size: Size | None = None,
    *,
    checkpoint: Path | None = None,
    key: Path | None = None,
) -> Recheck:
    """Hold a file against its card: all it consists of, its golden answers, its accuracy over the test part of a data set.

    Every file is held against the manifest before anything is parsed, and only a file that has not changed is opened: the
    very bytes that were hashed, in a process of its own. ``data_name`` None: the golden images alone are run. A data set's images are resized to ``size``
    (height, width), or where it is None to that which the file was judged on. ``checkpoint``: its network, where the file
    was moved away from it; ``key``: the public half of the one that it has to be signed with. Raises RequestError for a path that is no file, and for images that it does not take.
    """
    manifest.refuse_other(path)
    try:
        if key is not None:
            signature.verify(path, key)
        entries = manifest.read(path)
        wrong = manifest.problems(path, entries, checkpoint)
        own_card = None if _touches_card(path, wrong) else card.read(path)
    except EvidenceError as error:
        return _untrusted_file(path, str(error))
    apart = checkpoint is None and manifest.is_moved(path)
    evidence = [on_files(entries, wrong, apart, key), *(on_card(path, own_card) if own_card else [])]
    if own_card is None or any(finding.verdict == "fail" for finding in evidence):
        return _untrusted_file(path, worst_finding(*evidence).reason, own_card)
    try:
        with hold_copy(path, checkpoint, key) as copy:
            held_card = card.read(copy)
            result = _examine_file(copy, held_card, [*evidence, *on_card(copy, held_card)], data_name, track, size)
    except EvidenceError as error:
        return _untrusted_file(path, str(error), own_card)
    return replace(result, path=path, reason=result.reason.replace(str(copy), str(path)))


def _touches_card(path: Path, wrong: Sequence[Problem]) -> bool:
    return any(problem.name == card.path_of(path).name for problem in wrong)


def _untrusted_file(path: Path, reason: str, own_card: Card | None = None) -> Recheck:
    """A file that is not opened, since it or the evidence for it is not what was written."""
    return Recheck(
        path=path,
        target=own_card.target if own_card else "",
        sha256=parts.digest(path),
        grade="written",
        accuracy=None,
        verdict="fail",
        reason=reason,
        fed=own_card.fed if own_card else "normalised",
        size=own_card.input_shape[1:] if own_card else (0, 0),
    )


def _examine_file(
    path: Path, own_card: Card, evidence: Sequence[Finding], data_name: str | None, track: Track, size: Size | None
) -> Recheck:
    """What a file that has not changed does now."""
    target = targets.get(own_card.target)
    size = size or own_card.input_shape[1:]
    data_at_size = (
        None
        if data_name is None
        else resized.resize_data(card.load_images(own_card, data_name), own_card.input_shape[1:])
    )
    data = None if data_at_size is None else _resize_images(path, own_card, data_at_size, size)
    grade, accuracy, findings = _grade_of(target), None, list(evidence)
    try:
        if grade != "written":
            with open_isolated(target.name, path) as runner:
                if own_card.golden is not None or data is None:
                    findings.append(on_golden(path, own_card, runner))
                if data is not None and data_at_size is not None:
                    answers = compute_logits(
                        runner, data.test, own_card, track=track, label=target.name, fed=own_card.fed
                    )
                    accuracy, more = _on_data(answers, data, data_at_size, own_card, size)
                    findings += more
    except (targets.TargetError, CrashError) as error:
        grade, findings = "written", [*findings, Finding("fail", str(error))]
    if grade == "written":
        findings.append(Finding("not-checked", f"{own_card.target} cannot be run or evaluated on this machine"))
    finding = worst_finding(*findings)
    return Recheck(
        path=path,
        target=target.name,
        sha256=own_card.sha256,
        grade=grade,
        accuracy=accuracy,
        verdict=finding.verdict,
        reason=finding.reason,
        fed=own_card.fed,
        size=size,
    )


def _grade_of(target: Target) -> Grade:
    """The best evaluator of a target's files on this host."""
    return "runtime" if target.load is not None else "reference" if target.reference is not None else "written"


def _on_data(answers: Tensor, data: Data, judged: Data, own_card: Card, size: Size) -> tuple[Accuracy, list[Finding]]:
    """Accuracy from a file's answers to ``data``, at ``size``; ``judged``: the same images at the size it was judged at."""
    measurement = statistics.accuracy_of(answers, answers, data.test.labels)
    accuracy = with_classes(measurement, answers, data.test.labels, data.classes)
    if judged.digest != own_card.data_digest:
        return accuracy, [on_images(judged, own_card)]
    if size != own_card.input_shape[1:]:
        return accuracy, [on_other_size(answers, data, own_card, size)]
    return accuracy, [on_soundness(accuracy.soundness), on_answers(answers, own_card), on_accuracy(accuracy, own_card)]


def _resize_images(path: Path, own_card: Card, data: Data, size: Size) -> Data:
    """The data as the file takes it at ``size``. Raises RequestError where no resizing makes it so."""
    if data.shape[0] != own_card.input_shape[0]:
        raise RequestError(f"{path.name} takes images {own_card.input_shape}, the data has {data.shape}")
    if not own_card.takes(size):
        sizes = ", ".join(map(show_size, own_card.accepted.choices))
        raise RequestError(
            f"{path.name} takes images of {sizes}{' and all between' if own_card.ranged else ''}, not {show_size(size)}"
        )
    return resized.resize_data(data, size)


def on_files(entries: Mapping[str, str], wrong: Sequence[Problem], apart: bool, key: Path | None = None) -> Finding:
    """All files that it and the evidence for it consist of must be those that were written; ``apart``: but for its network."""
    if wrong:
        return Finding(
            "fail", f"this is not the file that was verified, with its evidence: {'; '.join(map(str, wrong))}"
        )
    exception = ", but for its network, which was left where it was made" if apart else ""
    signature = "" if key is None else f", signed with the private half of {key.name}"
    return Finding("pass", f"all {len(entries)} files are those that were written{exception}{signature}")


def on_card(path: Path, own_card: Card) -> list[Finding]:
    """The card must be that of this file: of its digest, its size, and its golden images."""
    digest, size = parts.digest(path), parts.size(path)
    problems = []
    if digest != own_card.sha256:
        problems.append(
            f"this is not the file that was verified: its card says sha256 {own_card.sha256[:16]}…, found {digest[:16]}…"
        )
    if own_card.row.bytes not in (None, size):
        problems.append(f"its card says {own_card.row.bytes:,} bytes, found {size:,}")
    if own_card.golden is not None and not golden.path_of(path).is_file():
        problems.append(f"{golden.path_of(path).name}, which its card names, is missing")
    return [Finding("fail", reason) for reason in problems]


def on_golden(path: Path, own_card: Card, runner: Runner) -> Finding:
    """It must answer the golden images as it did."""
    if own_card.golden is None:
        return Finding("not-checked", "the card holds no golden answers")
    try:
        images = golden.read(path, own_card.golden)
    except EvidenceError as error:
        return Finding("fail", str(error))
    answers = compute_logits(runner, images, own_card, fed=own_card.fed)
    differs = golden.describe_change(answers, images, own_card.golden, golden.runtime_of(targets.get(own_card.target)))
    if differs:
        return Finding("fail", differs)
    return Finding("pass", f"its answers to {len(images)} golden images are those it gave when it was made")


def on_images(data: Data, own_card: Card) -> Finding:
    """The images must be those that it was judged on, or there is nothing to hold its accuracy against."""
    return Finding(
        "fail",
        f"these are not the images it was verified on: its card says digest {own_card.data_digest[:16]}…, {data.name} has "
        f"{data.digest[:16]}…; name the data set of recipe {own_card.recipe!r} with --data",
    )


def on_accuracy(accuracy: Accuracy, own_card: Card) -> Finding:
    """It must be as accurate as it was, on the same images."""
    if own_card.row.accuracy is None:
        return Finding("not-checked", "the card holds no accuracy to compare with")
    return _on_top1(accuracy.top1, own_card.row.accuracy.top1, own_card)


def on_other_size(answers: Tensor, data: Data, own_card: Card, size: Size) -> Finding:
    """At a size that it was tried at when it was made, it must be as accurate as it was there, on the same images.

    ``answers``: [N, classes], for the test images at ``size``.
    """
    try:
        trials = decode(tuple[_Tried, ...], own_card.row.facts.get("at_other_sizes", []), "at_other_sizes")
    except ValueError as error:
        return Finding("fail", f"its card is damaged: {error}")
    there = [entry for entry in trials if (entry.height, entry.width) == size]
    if not there:
        return Finding(
            "not-checked", f"it was not tried at {show_size(size)} when it was made; nothing to compare with"
        )
    index = sample_evenly(len(data.test), max(1, there[0].agreement.n))
    top1 = float((answers[index].argmax(1) == data.test.labels[index]).to(torch.float64).mean())
    return _on_top1(top1, there[0].top1, own_card, f" at {show_size(size)}, on {len(index)} images,")


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What a card says of a file at a size that it was not captured at."""

    height: int
    width: int
    top1: float
    agreement: Agreement


def _on_top1(now: float, before: float, own_card: Card, where: str = "") -> Finding:
    if before - now > own_card.max_drop:
        return Finding("fail", f"top-1{where} was {percent(before)} % when it was made, {percent(now)} % now")
    return Finding("pass", f"top-1{where} was {percent(before)} % when it was made")


def on_answers(answers: Tensor, own_card: Card) -> Finding:
    """It must answer the first test images much as its card says; ``answers``: [N, classes], for the test images."""
    difference = _answer_distance(answers, own_card)
    if difference <= MOST_MOVED:
        return Finding("pass", "its answers are those on its card")
    return Finding(
        "fail",
        f"its answers moved by {difference:.0%} of their spread from those on its card ({MOST_MOVED:.0%} allowed), for the "
        f"same {len(own_card.answers)} images: it is fed, or prepares its images, otherwise than when it was made",
    )


def _answer_distance(answers: Tensor, own_card: Card) -> float:
    """How far the answers to the card's images are from those on it, at most, as a share of the spread of those."""
    if not own_card.answers:
        return 0.0
    before = torch.tensor(own_card.answers)
    spread = float(before.max() - before.min()) or 1.0
    return float((answers[: len(before)] - before).abs().max()) / spread
