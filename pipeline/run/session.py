"""One line of a run: done, measured, judged and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from edgewise.errors import EdgewiseError, LoweringError, StoreError
from edgewise.measure import statistics
from edgewise.measure.label_order import LabelOrder, label_order
from edgewise.measure.per_class import with_classes
from edgewise.measure.values import Accuracy, Latency
from edgewise.recipe import FileType
from edgewise.report import disagreements, quantization
from edgewise.report.document import Report, Section
from edgewise.report.outcomes import Outcomes
from edgewise.report.recommend import recommend_files
from edgewise.report.rows import ArtifactFile, Row
from edgewise.report.watch import Watch
from edgewise.run import cards, other_sizes
from edgewise.run.artifacts import File, Files
from edgewise.run.attempts import describe_change, milder_attempt
from edgewise.run.given_weights import examine_baseline, say_images
from edgewise.run.job import Job
from edgewise.run.proofs import Proof, Timing, moved_bytes, prove_file
from edgewise.run.steps import Model, Steps, as_quantized
from edgewise.stage import Stage
from edgewise.stages.quantize import Quantize
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
    outcomes: Outcomes
    failed: bool = False
    keep_going: bool = False
    """Whether what follows a failed step is done all the same."""
    answered: dict[str, Tensor] = field(default_factory=dict)
    """Each delivered file's answers to the test images, [N, classes], under the name that the page gives it."""

    @contextmanager
    def telling_what_stopped(self) -> Iterator[None]:
        """Have the report say which error ended the run within the block."""
        try:
            yield
        except EdgewiseError as error:
            self.report.stopped = str(error)
            with suppress(StoreError):  # where the disk is full the error itself has to do
                self.report.write(self.job.out)
            raise

    def baseline(self) -> Model:
        """What everything else is compared with."""
        say_images(self.job, self.watch)
        for sentence in self.job.told:
            self.watch.detail(sentence)
        model = examine_baseline(self.job, self.steps, self.steps.baseline(), self.watch)
        if self.job.told:
            model = replace(model, facts={**model.facts, "network": list(self.job.told)})
        self._step_row(model, model, [Finding("pass", "the baseline that everything else is compared with")])
        return model

    def attempt(self, stages: tuple[Stage, ...], model: Model, baseline: Model) -> Model:
        """Stages that are judged together, or what the recipe makes of a gate that fails."""

        def try_in_turn(settings: tuple[Stage, ...]) -> Model:
            result, first = model, len(self.report.rows)
            for index, stage in enumerate(settings):
                result = self.step(stage, result, baseline, after=settings[index + 1 :])
                if self._failed_since(first) and not self.keep_going:
                    break
            return result

        return self._try(stages, try_in_turn) or model

    def attempt_in_integers(self, grid: Grid, model: Model, baseline: Model) -> Model | None:
        """Quantization on one grid, or what the recipe makes of a gate that fails: None where it is skipped."""
        stage = self.job.recipe.quantize
        assert stage is not None

        def try_once(settings: tuple[Stage, ...]) -> Model:
            (setting,) = settings
            assert isinstance(setting, Quantize)
            return self.quantize(grid, model, baseline, setting)

        return self._try((stage,), try_once)

    def _try(self, stages: tuple[Stage, ...], work: Callable[[tuple[Stage, ...]], Model]) -> Model | None:
        """What ``work`` makes of the stages or of milder ones; None where they are skipped."""
        choice, trials = self.job.recipe.on_failure, self.job.recipe.trials
        while True:
            first = len(self.report.rows)
            result = work(stages)
            trials -= 1
            if not self._failed_since(first) or choice == "stop":
                return result
            if choice == "skip":
                self._let_go(first, "skipped: the run goes on from the network before it")
                return None
            softer = milder_attempt(stages) if trials else None
            if softer is None:
                return result
            self._let_go(first, f"let go: {describe_change(stages, softer)} is tried next")
            stages = softer

    def _failed_since(self, first: int) -> bool:
        """Whether a row from number ``first`` on failed."""
        return any(row.verdict == "fail" for row in self.report.rows[first:])

    def _let_go(self, first: int, why: str) -> None:
        """Mark the rows from ``first`` on as given up; what failed in them no longer fails the run."""
        for index, row in enumerate(self.report.rows[first:], first):
            self.report.rows[index] = replace(row, kept=False, reason=f"{row.reason}; {why}")
        self.failed = any(row.verdict == "fail" and row.kept for row in self.report.rows)
        self.report.write(self.job.out)
        self.watch.detail(why)

    def step(self, stage: Stage, model: Model, baseline: Model, after: Sequence[Stage]) -> Model:
        """One float stage. Its accuracy is judged after the fine-tuning among ``after``, the stages judged with it."""
        result = self.steps.stage(stage, model, baseline)
        if after:
            findings = [Finding("not-checked", "accuracy is judged after the fine-tuning that follows")]
        else:
            findings = gates.on_told(self._accuracy(result, baseline), self.limits, self.job.data.classes)
        if result.macs != model.macs:
            against = self._latency(result, model)
            findings.append(gates.on_input(against, model.name, self.limits))
            fields = {"step": model.name, "ratio": against.ratio_to_baseline, "ci95": against.ci95}
            result = replace(result, facts={**result.facts, "time_to_input": fields})
        self._step_row(result, baseline, findings)
        return result

    def quantize(self, grid: Grid, model: Model, baseline: Model, stage: Quantize) -> Model:
        """Quantization on one grid, after calibration alone where the recipe wants that control; files are timed."""
        if stage.control and stage.training is not None:
            alone = as_quantized(self.steps.stage(stage.untrained(), model, baseline, grid, "calibrate"), model)
            self._quantized_row(alone, "calibrate", grid, baseline, Finding("not-checked", "the control of training"))
        result = as_quantized(self.steps.stage(stage, model, baseline, grid), model)
        findings = gates.on_told(self._accuracy(result, baseline), self.limits, self.job.data.classes)
        self._quantized_row(result, "quantize", grid, baseline, *findings, Finding("pass", "its files are timed"))
        if costs := result.facts.get("sensitivity"):
            figure = quantization.draw_sensitivity(costs, result.facts.get("float_layers", ()))
            self.report.sections.append(Section(title="What quantizing each layer costs", figure=figure))
        return result

    def _quantized_row(self, result: Model, step: str, grid: Grid, baseline: Model, *findings: Finding) -> None:
        finding = gates.worst_finding(*findings)
        self._add(
            result.answers,
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
                gates=gates.gates_of(findings),
            ),
        )

    def candidates(self, model: Model, ready: Model | None, group: Sequence[Target], baseline: Model) -> None:
        """Every file that the recipe asks for, of the float network and of the quantized one, and which to take.

        ``ready`` None: quantization was skipped, and the float network is written in place of the quantized one.
        """
        file_types = self.job.recipe.candidates
        if ready is None:
            file_types, ready = tuple(name for name in file_types if name != "int8"), model
        for precision, able in float_candidates(file_types, group):
            self.artifacts(model, able, baseline, precision)
        if not file_types or "int8" in file_types:
            self.artifacts(ready, group, baseline)
        self.report.recommended = recommend_files(self.report.rows, self.report.artifacts)
        self.report.write(self.job.out)

    def show_changed(self, baseline: Model) -> None:
        """The test images that some file puts into another class than the baseline does, for the page."""
        data = self.job.data
        if part := disagreements.disagreement_section(data.test, data.classes, baseline.answers, self.answered):
            self.report.sections.append(part)
            self.report.write(self.job.out)

    def artifacts(
        self, model: Model, group: Sequence[Target], baseline: Model, precision: Precision | None = None
    ) -> None:
        """Write, load, evaluate, time and judge a file for every target; ``precision`` None: the target's own choice."""
        with_runtime = [target for target in group if target.load is not None]
        own, others = [(model, target) for target in group], [(baseline, target) for target in with_runtime]
        references = self.files.write(others if precision else own + others)
        files = self.files.at(precision).write(own) if precision else references
        for target in group:
            file, reference = files[model.digest, target.name], references.get((baseline.digest, target.name))
            if isinstance(file, LoweringError):
                self._add(None, _failed_row(model, target, file))
            else:
                self._artifact_row(model, target, file, reference if isinstance(reference, File) else None, baseline)

    @property
    def limits(self) -> Limits:
        """What the recipe allows."""
        return self.job.recipe.limits

    def limits_of(self, target: Target) -> Limits:
        """What the recipe allows a target's files, and the target where the recipe says nothing about it."""
        limits = self.job.recipe.target_limits.get(target.name, self.limits)
        limit = limits.max_undelegated
        return replace(limits, max_undelegated=target.max_undelegated if limit is None else limit)

    def _step_row(self, model: Model, baseline: Model, findings: list[Finding]) -> None:
        runtime = self.job.runtime
        file, reference = self._need(model, runtime), self._need(baseline, runtime)
        same = _same_work((model, file), (baseline, reference))
        if model is baseline:
            timing, seconds = self.files.latency(runtime, file, reference)
        else:
            timing, seconds, finding = self.files.judged_latency(
                runtime, file, reference, lambda latency: gates.on_latency(latency, self.limits, same_work=same)
            )
            findings.append(finding)
        cold, more = self.files.cold_start(runtime, file)
        accuracy = self._accuracy(model, baseline)
        if model is baseline:
            findings += [gates.on_soundness(accuracy.soundness), gates.on_labels(self._label_order(model))]
        finding = gates.worst_finding(*findings)
        self._add(
            model.answers,
            Row(
                step=model.name,
                target=None,
                params=model.params,
                macs=model.macs,
                bytes=file.bytes,
                accuracy=accuracy,
                latency=timing,
                verification=None,
                undelegated=file.artifact.undelegated,
                verdict=finding.verdict,
                reason=finding.reason,
                seconds=model.seconds + file.seconds + seconds + more,
                name=self._label(model.name),
                precision=file.artifact.precision,
                facts=model.facts,
                load_ms=cold.load_ms,
                peak_bytes=cold.peak_bytes,
                first_call_ms=cold.first_call_ms,
                moved_bytes=moved_bytes(model.moved_bytes, file.artifact.precision),
                gates=gates.gates_of(findings),
            ),
        )

    def _label_order(self, model: Model) -> LabelOrder:
        labels = self.job.data.test.labels
        return label_order(model.answers.argmax(1).numpy(), labels.numpy(), model.answers.shape[1])

    def _latency(self, model: Model, other: Model) -> Latency:
        """A step's time on the declared runtime against another step's."""
        runtime = self.job.runtime
        return self.files.latency(runtime, self._need(model, runtime), self._need(other, runtime))[0]

    def _need(self, model: Model, target: Target) -> File:
        file = self.files.write([(model, target)])[model.digest, target.name]
        if isinstance(file, LoweringError):
            raise file
        return file

    def _artifact_row(self, model: Model, target: Target, file: File, reference: File | None, baseline: Model) -> None:
        """A written file proved, timed, judged, delivered and put into the report."""
        proof = prove_file(self, model, target, file, baseline)
        timing = self._timing(model, target, file, reference, baseline)
        finding = gates.worst_finding(*proof.findings, *timing.findings)
        row = Row(
            step="artifact",
            target=target.name,
            params=model.params,
            macs=model.macs,
            bytes=file.bytes,
            accuracy=proof.accuracy,
            latency=timing.latency,
            verification=proof.grade,
            undelegated=file.artifact.undelegated,
            verdict=finding.verdict,
            reason=finding.reason,
            seconds=file.seconds + proof.seconds + timing.seconds,
            precision=file.artifact.precision,
            agreement=proof.agreement,
            facts={**self.files.facts(target, file), **other_sizes.facts(proof.elsewhere)},
            load_ms=proof.cold.load_ms if proof.cold else None,
            peak_bytes=proof.cold.peak_bytes if proof.cold else None,
            first_call_ms=proof.cold.first_call_ms if proof.cold else None,
            moved_bytes=proof.moved_bytes,
            gates=gates.gates_of((*proof.findings, *timing.findings)),
        )
        self._deliver(model, target, file, row, proof)
        if proof.answers is not None:
            self.answered[f"{target.name} {row.precision}"] = proof.answers
        self._add(proof.answers, row)

    def _timing(self, model: Model, target: Target, file: File, reference: File | None, baseline: Model) -> Timing:
        """A file's time against the baseline's file, where its runtime is here and would take both."""
        handle = self.files.open(target, file)
        if reference is None or handle.grade != "runtime":
            return Timing()
        same, limits = _same_work((model, file), (baseline, reference)), self.limits_of(target)
        latency, seconds, finding = self.files.judged_latency(
            target, file, reference, lambda timing: gates.on_latency(timing, limits, same_work=same)
        )
        return Timing(latency=latency, seconds=seconds, findings=(finding,))

    def _deliver(self, model: Model, target: Target, file: File, row: Row, proof: Proof) -> None:
        """The file with its network, its golden images and its card, in the report's folder."""
        path = self.files.deliver(target, file)
        place = self.job.out / path
        delivery = cards.Delivered(
            artifact=place,
            sha256=file.digest,
            checkpoint=self.files.deliver_checkpoint(model),
            environment=self.report.environment,
            looks=0 if self.job.whole is not None else len(self.steps.looked),
            golden=_write_golden(place, proof, golden.runtime_of(target)),
            answers=proof.answers,
        )
        cards.write(delivery, row, self.job)
        manifest.write(place, delivery.checkpoint)
        self.report.artifacts.append(
            ArtifactFile(target=target.name, path=path.as_posix(), sha256=file.digest, bytes=file.bytes)
        )

    def _accuracy(self, model: Model, baseline: Model) -> Accuracy:
        return self.judge_against(model.answers, baseline)

    def judge_against(self, answers: Tensor, baseline: Model) -> Accuracy:
        """Accuracy of answers [N, classes] to the test images, and what it differs by from the baseline's."""
        labels = self.job.data.test.labels
        accuracy = statistics.accuracy_of(answers, baseline.answers, labels)
        return with_classes(accuracy, answers, labels, self.job.data.classes)

    def _label(self, name: str) -> str:
        earlier = sum(row.step == name for row in self.report.rows)
        return f"{name} {earlier + 1}" if earlier else name

    def _add(self, answers: Tensor | None, row: Row) -> None:
        """A row, and which classes ``answers`` [n, classes] give to the test images; None where nothing answered."""
        self.report.rows.append(row)
        self.report.write(self.job.out)
        if answers is not None:
            self.outcomes.add(row, answers.numpy())
            self.outcomes.write(self.job.out)
        self.failed = self.failed or row.verdict == "fail"
        self.watch.row(row)


def float_candidates(
    file_types: Sequence[FileType], group: Sequence[Target]
) -> list[tuple[Precision | None, tuple[Target, ...]]]:
    """The float network's precisions among ``file_types``, each with the targets that can be written in it, none twice."""
    targets: dict[Precision | None, list[Target]] = {}
    for target in group:
        if target.integers_only:
            continue
        usual = target.precisions[:1]
        choices = dict.fromkeys(None if c == "float" or c in usual else c for c in file_types if c != "int8")
        for name in choices:
            if name is None or name in target.precisions:
                targets.setdefault(name, []).append(target)
    return [(name, tuple(able)) for name, able in targets.items()]


def _write_golden(place: Path, proof: Proof, runtime: str) -> Record | None:
    """The golden images beside a delivered file; where nothing could run it, none, and none of an earlier file's."""
    if proof.golden is not None:
        return golden.write(place, *proof.golden, runtime=runtime)
    golden.remove(place)
    return None


def _same_work(one: tuple[Model, File], other: tuple[Model, File]) -> bool:
    """Whether neither network saved multiply-accumulates, nor its file precision."""
    (model, file), (baseline, reference) = one, other
    return model.macs == baseline.macs and file.artifact.precision == reference.artifact.precision


def _failed_row(model: Model, target: Target, failure: LoweringError) -> Row:
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
