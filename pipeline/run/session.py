"""One line of a run: done, measured, judged and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgewise.errors import LoweringError
from edgewise.measure import statistics
from edgewise.measure.values import Accuracy, Latency
from edgewise.recipe import FileType
from edgewise.report import quantization
from edgewise.report.document import Report, Section
from edgewise.report.recommend import recommend_files
from edgewise.report.rows import ArtifactFile, Row
from edgewise.report.watch import Watch
from edgewise.run import cards, other_sizes
from edgewise.run.artifacts import File, Files
from edgewise.run.job import Job
from edgewise.run.proofs import Proof, Timing, prove
from edgewise.run.steps import Model, Steps, as_quantized
from edgewise.stage import Stage, traits_of
from edgewise.targets import Grid, Precision, Target
from edgewise.verify import gates, golden, manifest
from edgewise.verify.gates import Finding, Limits
from edgewise.verify.golden import Record


@dataclass(kw_only=True)
class Session:
    """Where a run's lines are done, measured and judged."""

    job: Job
    watch: Watch
    steps: Steps
    files: Files
    report: Report
    failed: bool = False

    def baseline(self) -> Model:
        """What everything else is compared with."""
        model = self.steps.baseline()
        self._step_row(model, model, [Finding("pass", "the baseline that everything else is compared with")])
        return model

    def step(self, stage: Stage, model: Model, baseline: Model, after: Sequence[Stage]) -> Model:
        """One float stage. Its accuracy is judged after the fine-tuning, where one follows at once."""
        result = self.steps.stage(stage, model, baseline)
        if after and traits_of(after[0]).recovers:
            findings = [Finding("not-checked", "accuracy is judged after the fine-tuning that follows")]
        else:
            findings = [gates.on_accuracy(self._accuracy(result, baseline), self.limits)]
        if result.macs != model.macs:
            against = self._latency(result, model)
            findings.append(gates.on_input(against, model.name, self.limits))
            told = {"step": model.name, "ratio": against.ratio_to_baseline, "ci95": against.ci95}
            result = replace(result, facts={**result.facts, "time_to_input": told})
        self._step_row(result, baseline, findings)
        return result

    def quantize(self, grid: Grid, model: Model, baseline: Model) -> Model:
        """Quantization on one grid, after calibration alone where the recipe wants that control; files are timed."""
        stage = self.job.recipe.quantize
        assert stage is not None
        if stage.control and stage.training is not None:
            measured = stage.sensitivity if stage.max_float_layers else 0  # else the same would be measured twice
            untrained = replace(stage, training=None, sensitivity=measured)
            alone = as_quantized(self.steps.stage(untrained, model, baseline, grid), model)
            self._quantized_row(alone, "calibrate", grid, baseline, Finding("not-checked", "the control of training"))
        result = as_quantized(self.steps.stage(stage, model, baseline, grid), model)
        finding = gates.on_accuracy(self._accuracy(result, baseline), self.limits)
        self._quantized_row(
            result, "quantize", grid, baseline, replace(finding, reason=f"{finding.reason}; its files are timed")
        )
        if costs := result.facts.get("sensitivity"):
            figure = quantization.draw_sensitivity(costs, result.facts.get("float_layers", ()))
            self.report.sections.append(Section(title="What quantizing each layer costs", figure=figure))
        return result

    def _quantized_row(self, result: Model, step: str, grid: Grid, baseline: Model, finding: Finding) -> None:
        self._add(
            Row(
                step=step,
                target=None,
                params=result.params,
                macs=result.macs,
                bytes=None,
                accuracy=self._accuracy(result, baseline),
                latency=None,
                verification=None,
                undelegated=(),
                verdict=finding.verdict,
                reason=finding.reason,
                seconds=result.seconds,
                name=self._label(step),
                precision="int8",
                facts={**result.facts, "grid": grid.to_json()},
            )
        )

    def candidates(self, model: Model, ready: Model, group: Sequence[Target], baseline: Model) -> None:
        """Every file that the recipe asks for, of the float network and of the quantized one, and which to take."""
        wanted = self.job.recipe.candidates
        for precision, able in float_candidates(wanted, group):
            self.artifacts(model, able, baseline, precision)
        if not wanted or "int8" in wanted:
            self.artifacts(ready, group, baseline)
        self.report.recommended = recommend_files(self.report.rows, self.report.artifacts)
        self.report.write(self.job.out)

    def artifacts(
        self, model: Model, group: Sequence[Target], baseline: Model, precision: Precision | None = None
    ) -> None:
        """Write, load, evaluate, time and judge a file for every target; ``precision`` None: the target's own choice."""
        timed = [target for target in group if target.load is not None]
        own, others = [(model, target) for target in group], [(baseline, target) for target in timed]
        references = self.files.write(others if precision else own + others)
        written = self.files.at(precision).write(own) if precision else references
        for target in group:
            made, reference = written[model.digest, target.name], references.get((baseline.digest, target.name))
            if isinstance(made, LoweringError):
                self._add(_lost(model, target, made))
            else:
                self._artifact_row(model, target, made, reference if isinstance(reference, File) else None, baseline)

    @property
    def limits(self) -> Limits:
        """What the recipe allows."""
        return self.job.recipe.limits

    def limits_of(self, target: Target) -> Limits:
        """What the recipe allows, and the target where the recipe says nothing about it."""
        stated = self.limits.max_undelegated
        return replace(self.limits, max_undelegated=target.max_undelegated if stated is None else stated)

    def _step_row(self, model: Model, baseline: Model, findings: list[Finding]) -> None:
        runtime = self.job.runtime
        made, reference = self._need(model, runtime), self._need(baseline, runtime)
        timing, load_ms, seconds = self.files.latency(runtime, made, reference)
        peak_bytes, more = self.files.peak(runtime, made)
        if model is not baseline:
            same = _same_work((model, made), (baseline, reference))
            findings.append(gates.on_latency(timing, self.limits, same_work=same))
        finding = gates.judge(*findings)
        self._add(
            Row(
                step=model.name,
                target=None,
                params=model.params,
                macs=model.macs,
                bytes=made.bytes,
                accuracy=self._accuracy(model, baseline),
                latency=timing,
                verification=None,
                undelegated=made.artifact.undelegated,
                verdict=finding.verdict,
                reason=finding.reason,
                seconds=model.seconds + made.seconds + seconds + more,
                name=self._label(model.name),
                precision=made.artifact.precision,
                facts=model.facts,
                load_ms=load_ms,
                peak_bytes=peak_bytes,
            )
        )

    def _latency(self, model: Model, other: Model) -> Latency:
        """A step's time on the declared runtime against another step's."""
        runtime = self.job.runtime
        return self.files.latency(runtime, self._need(model, runtime), self._need(other, runtime))[0]

    def _need(self, model: Model, target: Target) -> File:
        made = self.files.write([(model, target)])[model.digest, target.name]
        if isinstance(made, LoweringError):
            raise made
        return made

    def _artifact_row(self, model: Model, target: Target, made: File, reference: File | None, baseline: Model) -> None:
        """A written file proved, timed, judged, delivered and put into the report."""
        proof = prove(self, model, target, made, baseline)
        timing = self._timing(model, target, made, reference, baseline)
        finding = gates.judge(*proof.findings, *timing.findings)
        row = Row(
            step="artifact",
            target=target.name,
            params=model.params,
            macs=model.macs,
            bytes=made.bytes,
            accuracy=proof.accuracy,
            latency=timing.latency,
            verification=proof.grade,
            undelegated=made.artifact.undelegated,
            verdict=finding.verdict,
            reason=finding.reason,
            seconds=made.seconds + proof.seconds + timing.seconds,
            precision=made.artifact.precision,
            agreement=proof.agreement,
            facts={**self.files.facts(target, made), **other_sizes.facts(proof.elsewhere)},
            load_ms=timing.load_ms,
            peak_bytes=proof.peak_bytes,
        )
        self._deliver(model, target, made, row, proof)
        self._add(row)

    def _timing(self, model: Model, target: Target, made: File, reference: File | None, baseline: Model) -> Timing:
        """A file's time against the baseline's file, where its runtime is here and would take both."""
        opened = self.files.open(target, made)
        if reference is None or opened.grade != "runtime":
            return Timing()
        latency, load_ms, seconds = self.files.latency(target, made, reference)
        same = _same_work((model, made), (baseline, reference))
        finding = gates.on_latency(latency, self.limits, same_work=same)
        return Timing(latency=latency, load_ms=load_ms, seconds=seconds, findings=(finding,))

    def _deliver(self, model: Model, target: Target, made: File, row: Row, proof: Proof) -> None:
        """The file with its network, its golden images and its card, in the report's folder."""
        path = self.files.deliver(target, made)
        place = self.job.out / path
        delivered = cards.Delivered(
            artifact=place,
            sha256=made.digest,
            checkpoint=self.files.deliver_checkpoint(model),
            environment=self.report.environment,
            looks=len(self.steps.looked),
            golden=_golden(place, proof),
            answers=proof.answers,
        )
        cards.write(delivered, row, self.job)
        manifest.write(place, delivered.checkpoint)
        self.report.artifacts.append(
            ArtifactFile(target=target.name, path=path.as_posix(), sha256=made.digest, bytes=made.bytes)
        )

    def _accuracy(self, model: Model, baseline: Model) -> Accuracy:
        return self.judge_against(model.answers, baseline)

    def judge_against(self, answers: Tensor, baseline: Model) -> Accuracy:
        reference = self._correct(baseline.answers)
        return statistics.judge_top1(reference if answers is baseline.answers else self._correct(answers), reference)

    def _correct(self, answers: Tensor) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = (answers.argmax(1) == self.job.data.test.labels).numpy()
        return right

    def _label(self, name: str) -> str:
        earlier = sum(row.step == name for row in self.report.rows)
        return f"{name} {earlier + 1}" if earlier else name

    def _add(self, row: Row) -> None:
        self.report.rows.append(row)
        self.report.write(self.job.out)
        self.failed = self.failed or row.verdict == "fail"
        self.watch.row(row)


def float_candidates(
    wanted: Sequence[FileType], group: Sequence[Target]
) -> list[tuple[Precision | None, tuple[Target, ...]]]:
    """The float network's precisions among ``wanted``, each with the targets that can be written in it, none twice."""
    found: dict[Precision | None, list[Target]] = {}
    for target in group:
        if target.integers_only:
            continue
        usual = target.precisions[:1]
        asked = dict.fromkeys(None if c == "float" or c in usual else c for c in wanted if c != "int8")
        for name in asked:
            if name is None or name in target.precisions:
                found.setdefault(name, []).append(target)
    return [(name, tuple(able)) for name, able in found.items()]


def _golden(place: Path, proof: Proof) -> Record | None:
    """The golden images beside a delivered file; where nothing could run it, none, and none of an earlier file's."""
    if proof.golden is not None:
        return golden.write(place, *proof.golden)
    golden.remove(place)
    return None


def _same_work(one: tuple[Model, File], other: tuple[Model, File]) -> bool:
    """Whether neither network saved multiply-accumulates, nor its file precision."""
    (model, made), (baseline, reference) = one, other
    return model.macs == baseline.macs and made.artifact.precision == reference.artifact.precision


def _lost(model: Model, target: Target, failure: LoweringError) -> Row:
    return Row(
        step="artifact",
        target=target.name,
        params=model.params,
        macs=model.macs,
        bytes=None,
        accuracy=None,
        latency=None,
        verification=None,
        undelegated=(),
        verdict="fail",
        reason=str(failure),
        seconds=0.0,
    )
