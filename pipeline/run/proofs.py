"""The proof of one written file: opened, run over the test images, held against its network, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from edgewise.files.open import Grade
from edgewise.images.sizes import show_size
from edgewise.measure.agreement import compare_answers, differing_images
from edgewise.measure.memory import ColdStart
from edgewise.measure.values import Accuracy, Agreement, Latency
from edgewise.run.artifacts import File, Files
from edgewise.run.job import Job
from edgewise.run.other_sizes import AtSize, at_other_sizes
from edgewise.run.steps import Model, Steps
from edgewise.targets import Precision, Runner, Target
from edgewise.verify import gates, golden
from edgewise.verify.gates import Finding, Limits
from edgewise.verify.golden import Golden, Tolerance

IN_DOUBT = 4
"""Images on which a file's layers are compared with its network's."""


class Bench(Protocol):
    """What a proof is made with: a run's session."""

    @property
    def job(self) -> Job: ...
    @property
    def steps(self) -> Steps: ...
    @property
    def files(self) -> Files: ...
    def limits_of(self, target: Target) -> Limits: ...
    def judge_against(self, answers: Tensor, baseline: Model) -> Accuracy: ...


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a file answered to the test images, and what that comes to."""

    answers: Tensor
    """[N, classes]."""
    accuracy: Accuracy
    agreement: Agreement
    elsewhere: Sequence[AtSize]
    """At the other image sizes that it accepts."""
    golden: tuple[Golden, Tolerance] | None
    """None where an answer is no finite number: nothing can be held against it."""
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known of a file but its time."""

    grade: Grade
    findings: tuple[Finding, ...]
    answered: Answered | None = None
    """None where nothing here can evaluate the file."""
    cold: ColdStart | None = None
    """What a fresh process pays for it, where its runtime is here."""
    moved_bytes: int | None = None
    """What it reads and writes for one image."""
    seconds: float = 0.0

    @property
    def accuracy(self) -> Accuracy | None:
        """Against the baseline, over the whole test set."""
        return self.answered.accuracy if self.answered else None

    @property
    def agreement(self) -> Agreement | None:
        """With the network that the file was written from."""
        return self.answered.agreement if self.answered else None

    @property
    def answers(self) -> Tensor | None:
        """[N, classes] for the test images."""
        return self.answered.answers if self.answered else None

    @property
    def golden(self) -> tuple[Golden, Tolerance] | None:
        """A few images with the file's answers, and how far another machine's may lie from them."""
        return self.answered.golden if self.answered else None

    @property
    def elsewhere(self) -> Sequence[AtSize]:
        """At the other image sizes that the file accepts."""
        return self.answered.elsewhere if self.answered else ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A file's time, where its runtime is here."""

    latency: Latency | None = None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


def prove_file(bench: Bench, model: Model, target: Target, file: File, baseline: Model) -> Proof:
    """Everything but the time of a file that was written from ``model``."""
    handle, limits = bench.files.open(target, file), bench.limits_of(target)
    nbytes = moved_bytes(model.moved_bytes, file.artifact.precision)
    findings = (
        gates.on_grade(handle.grade, handle.reason),
        gates.on_coverage(file.artifact.undelegated, limits),
        gates.on_covered_macs(file.artifact.facts, limits),
    )
    if handle.runner is None:
        costs = gates.on_file(limits, file.bytes, nbytes, None)
        return Proof(grade=handle.grade, findings=(*findings, *costs), moved_bytes=nbytes)
    answer = _answer_images(bench, model, target, file, handle.runner, baseline)
    cold, seconds = bench.files.cold_start(target, file) if handle.grade == "runtime" else (None, 0.0)
    return Proof(
        grade=handle.grade,
        findings=(*answer.findings, *findings, *gates.on_file(limits, file.bytes, nbytes, cold)),
        answered=answer,
        cold=cold,
        moved_bytes=nbytes,
        seconds=answer.seconds + seconds,
    )


def _answer_images(bench: Bench, model: Model, target: Target, file: File, runner: Runner, baseline: Model) -> Answered:
    """The file run over the test images, and at every other size that it accepts."""
    preprocess, limits = bench.job.recipe.preprocess, bench.limits_of(target)
    label = bench.files.evaluator(target, bench.files.open(target, file).grade, file)
    answers, seconds = bench.steps.answers(runner, label, target.name, preprocess.fed)
    accuracy = bench.judge_against(answers, baseline)
    agreement = _compare_to_network(bench, model, target, file, answers)
    elsewhere, more = at_other_sizes(bench.steps, model, runner, label, target.name, file.artifact.precision)
    images, own = golden.choose(bench.job.data.test), preprocess.finished(model.answers)
    allowed = golden.tolerance(answers, own) if golden.can_compare(answers, own) else None
    return Answered(
        answers=answers,
        accuracy=accuracy,
        agreement=agreement,
        elsewhere=elsewhere,
        golden=None if allowed is None else (replace(images, answers=answers[images.index]), allowed),
        findings=(
            *gates.on_told(accuracy, limits, bench.job.data.classes),
            gates.on_agreement(agreement, limits),
            gates.on_sqnr(agreement, limits),
            *(gates.on_agreement(e.agreement, limits, f"at {show_size(e.size)} ") for e in elsewhere),
        ),
        seconds=seconds + more,
    )


def _compare_to_network(bench: Bench, model: Model, target: Target, file: File, answers: Tensor) -> Agreement:
    """A file against its network: its answers, and layer by layer where it computes in integers, since one channel's wrong
    scale moves hardly an answer, or where the answers leave a doubt."""
    precision, softmax = file.artifact.precision, bench.job.recipe.preprocess.softmax
    agreement = compare_answers(answers.numpy(), model.answers.numpy(), precision, softmax=softmax)
    doubtful = gates.needs_layers(agreement, bench.limits_of(target))
    if agreement.not_finite or not (precision == "int8" or doubtful):
        return agreement
    apart = bench.files.layers_apart(target, file, model, images_in_doubt(answers, model.answers, agreement.margin))
    if apart is None:
        return agreement
    return replace(agreement, layers_apart=len(apart), first_apart=apart[0] if apart else "")


def images_in_doubt(answers: Tensor, reference: Tensor, margin: float) -> list[int]:
    """Numbers of a few images: those in another class by more than a tie first, then those whose answers are furthest."""
    differ = differing_images(answers.numpy(), reference.numpy(), margin).tolist()
    furthest = (answers.softmax(1) - reference.softmax(1)).abs().amax(1).argsort(descending=True).tolist()
    return list(dict.fromkeys([*differ, *furthest]))[:IN_DOUBT]


_WIDTH = {"float32": 1.0, "float16": 0.5, "int8": 0.25, "int8-weights": 1.0, "palette": 1.0}
"""Bytes of an activation over those of a float32 one."""


def moved_bytes(in_float: int, precision: Precision) -> int:
    """What a network moves in a file of ``precision``, from what it moves in float32."""
    return round(in_float * _WIDTH[precision])
