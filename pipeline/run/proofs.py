"""The proof of one written file: opened, run over the test images, held against its network, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from edgewise.files.open import Grade
from edgewise.images.sizes import show_size
from edgewise.measure.statistics import judge_agreement
from edgewise.measure.values import Accuracy, Agreement, Latency
from edgewise.run.artifacts import File, Files
from edgewise.run.job import Job
from edgewise.run.other_sizes import AtSize, at_other_sizes
from edgewise.run.steps import Model, Steps
from edgewise.targets import Runner, Target
from edgewise.verify import gates, golden
from edgewise.verify.gates import Finding, Limits
from edgewise.verify.golden import Golden, Tolerance


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
    golden: tuple[Golden, Tolerance]
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known of a file but its time."""

    grade: Grade
    findings: tuple[Finding, ...]
    answered: Answered | None = None
    """None where nothing here can evaluate the file."""
    peak_bytes: int | None = None
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
    load_ms: float | None = None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


def prove(bench: Bench, model: Model, target: Target, made: File, baseline: Model) -> Proof:
    """Everything but the time of a file that was written from ``model``."""
    opened = bench.files.open(target, made)
    findings = (
        gates.on_grade(opened.grade, opened.reason),
        gates.on_coverage(made.artifact.undelegated, bench.limits_of(target)),
        gates.on_covered_macs(made.artifact.facts, bench.job.recipe.limits),
    )
    if opened.runner is None:
        return Proof(grade=opened.grade, findings=findings)
    answered = _answer(bench, model, target, made, opened.runner, baseline)
    peak, seconds = bench.files.peak(target, made) if opened.grade == "runtime" else (None, 0.0)
    return Proof(
        grade=opened.grade,
        findings=(*answered.findings, *findings),
        answered=answered,
        peak_bytes=peak,
        seconds=answered.seconds + seconds,
    )


def _answer(bench: Bench, model: Model, target: Target, made: File, runner: Runner, baseline: Model) -> Answered:
    """The file run over the test images, and at every other size that it accepts."""
    preprocess, limits = bench.job.recipe.preprocess, bench.job.recipe.limits
    label = bench.files.evaluator(target, bench.files.open(target, made).grade, made)
    answers, seconds = bench.steps.answers(runner, label, target.name, preprocess.fed)
    wanted = preprocess.finished(model.answers)
    accuracy, agreement = bench.judge_against(answers, baseline), judge_agreement(answers, wanted)
    elsewhere, more = at_other_sizes(bench.steps, model, runner, label, target.name)
    images = golden.choose(bench.job.data.test)
    return Answered(
        answers=answers,
        accuracy=accuracy,
        agreement=agreement,
        elsewhere=elsewhere,
        golden=(replace(images, answers=answers[images.index]), golden.tolerance(answers, wanted)),
        findings=(
            gates.on_accuracy(accuracy, limits),
            gates.on_agreement(agreement, limits),
            *(gates.on_agreement(e.agreement, limits, f"at {show_size(e.size)} ") for e in elsewhere),
        ),
        seconds=seconds + more,
    )
