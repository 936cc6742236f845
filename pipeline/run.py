"""A run, top to bottom: baseline, float stages, one quantization per grid, files, verdicts.

``run`` is the list; everything under it does one of its lines. Results live in the step store under keys made here, so
that whatever was once computed for the same inputs is taken from there.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import platform
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import targets
from pipeline import architecture, checkpoint, latency, lower, statistics, verify
from pipeline.analyze import count
from pipeline.architecture import Base, source_digest
from pipeline.checkpoint import Checkpoint
from pipeline.errors import LoweringError
from pipeline.images import Network, logits, normalise
from pipeline.recipe import Context, Recipe, Stage, describe, stage_name
from pipeline.report import Report
from pipeline.report._host import cpu_name
from pipeline.resolve import Job
from pipeline.rows import Agreement, ArtifactFile, Grade, Latency, Row
from pipeline.store import Entry, Store, file_digest, key_of
from pipeline.training import resolve_precision
from pipeline.verify import Finding
from pipeline.watch import Watch
from targets import Artifact, Grid, Runner, Target

_STAGE_PACKAGES = ("torch", "torchao", "torch-pruning", "lightning-fabric", "numpy")
_HERE = Path(__file__)


def run(job: Job, watch: Watch) -> Report:
    """Do everything that the recipe asks for; the report on disk grows by a row after each step."""
    with lower.workers() as pool:
        bench = Bench(job=job, watch=watch, pool=pool, store=Store(job.store))
        bench.store.sweep()
        model = bench.baseline()
        for index, stage in enumerate(job.recipe.stages):
            model = bench.step(stage, model, index)
            if bench.failed:
                return bench.finish()
        for grid, group in share_grids(job.targets) if job.recipe.quantize else [(None, job.targets)]:
            ready = bench.quantize(grid, model) if grid else model
            bench.files(ready, group)
        return bench.finish()


def share_grids(wanted: Sequence[Target]) -> list[tuple[Grid, tuple[Target, ...]]]:
    """Targets grouped so that each group shares one quantization: one for all where a common grid exists."""
    groups: list[tuple[Target, ...]] = []
    for target in wanted:
        for index, group in enumerate(groups):
            if targets.common_grid((*group, target)):
                groups[index] = (*group, target)
                break
        else:
            groups.append((target,))
    return [(grid, group) for group in groups if (grid := targets.common_grid(group))]


@dataclass(frozen=True)
class Model:
    """A finished step's network and how it answers."""

    name: str
    folder: Path
    """Its checkpoint."""
    digest: str
    answers: Tensor
    """float32 logits [N, classes] for the test images."""
    params: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class File:
    """A written file in the store."""

    artifact: Artifact
    digest: str
    bytes: int
    seconds: float


@dataclass(kw_only=True)
class Bench:
    """What the lines of the run share."""

    job: Job
    watch: Watch
    pool: Executor
    store: Store
    failed: bool = False
    _baseline: Model | None = None
    _runners: dict[Path, tuple[Runner, float]] = field(default_factory=dict)

    @cached_property
    def report(self) -> Report:
        """The document that grows; a stale one from an earlier run is replaced at the first row."""
        described = self.job.recipe.describe()
        return Report(recipe=described, environment=host_environment(self.job.recipe.threads))

    @property
    def recipe(self) -> Recipe:
        """The recipe that is run."""
        return self.job.recipe

    # -- the lines of the run ----------------------------------------------------------------------------------------

    def baseline(self) -> Model:
        """The given weights, or a network trained by the recipe's ``baseline`` stage."""
        torch.manual_seed(self.recipe.seed)
        network = architecture.build(self.job.base).eval()
        if self.job.weights is not None:
            architecture.load_weights(network, self.job.weights)
            key = key_of(kind="given", model=checkpoint.digest(Checkpoint(self.job.base, network)))
            entry = self.store.keep(key, lambda folder, _: self._save(network, folder))
        else:
            entry = self._stage_entry(self.recipe.baseline, network, "baseline")
        self._baseline = self._measure("baseline", entry)
        self._step_row(self._baseline, judged=True)
        return self._baseline

    def step(self, stage: Stage, model: Model, index: int) -> Model:
        """One float stage, with its checks. Accuracy is judged after the training that follows a change of structure."""
        name = stage_name(stage)
        entry = self._stage_entry(stage, self._load(model), name)
        result = self._measure(name, entry)
        following = [stage_name(s) for s in self.recipe.stages[index + 1 :][:1]]
        self._step_row(result, judged=following != ["finetune"])
        return result

    def quantize(self, grid: Grid, model: Model) -> Model:
        """Quantization-aware training on one grid; its time is that of the files made from it."""
        assert self.recipe.quantize is not None
        entry = self._stage_entry(self.recipe.quantize, self._load(model), "quantize", grid)
        result = dataclasses.replace(self._measure("quantize", entry), params=model.params, macs=model.macs)
        accuracy = self._accuracy(result.answers)
        finding = verify.on_accuracy(accuracy, self.recipe.limits)
        row = Row(
            step="quantize", target=None, params=result.params, macs=result.macs, bytes=None, accuracy=accuracy,
            latency=None, verification=None, undelegated=(), verdict=finding.verdict,
            reason=f"{finding.reason}; timed as files below", seconds=result.seconds,
            name=f"quantize, {grid.weight_bits}-bit weights", precision="int8",
        )  # fmt: skip
        self._add(row)
        return result

    def files(self, model: Model, group: Sequence[Target]) -> None:
        """Write, load, evaluate, time and judge a file for every target."""
        assert self._baseline is not None
        timed = [target for target in group if target.load is not None]
        written = self._write([(model, t) for t in group] + [(self._baseline, t) for t in timed])
        for target in group:
            made, reference = written[model.digest, target.name], written.get((self._baseline.digest, target.name))
            if isinstance(made, LoweringError):
                self._add(self._lost_row(model, target, made))
            else:
                self._artifact_row(model, target, made, reference if isinstance(reference, File) else None)

    def finish(self) -> Report:
        """The report as it stands."""
        return self.report

    # -- steps -------------------------------------------------------------------------------------------------------

    def _stage_entry(self, stage: Stage, network: nn.Module, name: str, grid: Grid | None = None) -> Entry:
        ctx = self._context(grid)
        key = self._stage_key(stage, network, grid)

        def make(folder: Path, scratch: Path) -> None:
            self.watch.say(f"{name} …")
            torch.manual_seed(self.recipe.seed)
            self._save(stage(network, dataclasses.replace(ctx, scratch=scratch)), folder)

        return self.store.keep(key, make)

    def _context(self, grid: Grid | None) -> Context:
        teacher = None if self._baseline is None else self._load(self._baseline)
        return Context(
            spec=self.job.spec, data=self.job.data, scratch=Path(), device=self.recipe.device, seed=self.recipe.seed,
            threads=self.recipe.threads, runtime=self.recipe.runtime, baseline=teacher, grid=grid,
            track=self.watch.track, note=self.watch.say,
        )  # fmt: skip

    def _stage_key(self, stage: Stage, network: nn.Module, grid: Grid | None) -> str:
        spec = self.job.spec
        training = getattr(stage, "training", None)
        return key_of(
            kind="stage",
            stage=describe(stage),
            code=source_digest(Path(inspect.getfile(type(stage)))),
            model=checkpoint.digest(Checkpoint(self.job.base, network)),
            teacher=None if self._baseline is None else self._baseline.digest,
            data=self.job.data.digest,
            spec=[spec.mean, spec.std, spec.classifier],
            grid=None if grid is None else grid.to_json(),
            seed=self.recipe.seed,
            device=[self.recipe.device, resolve_precision(training.precision, self.recipe.device) if training else None],
            runtime=[self.recipe.runtime, self.recipe.threads, _machine()] if _times(stage) else None,
            threads=torch.get_num_threads(),
            versions=targets.versions(_STAGE_PACKAGES),
        )

    def _save(self, network: nn.Module, folder: Path) -> None:
        checkpoint.save(Checkpoint(self.job.base, network), folder)
        (folder / "input.json").write_text(json.dumps({"shape": list(self.job.data.shape)}), encoding="utf-8")

    def _load(self, model: Model) -> nn.Module:
        return checkpoint.load(model.folder).model

    def _measure(self, name: str, entry: Entry) -> Model:
        """Evaluate a stored network over the whole test set and count what it costs."""
        network = checkpoint.load(entry.path).model
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        answers, seconds = self._answers(network, digest, name)
        totals = count(network, self.job.data.shape)
        return Model(name, entry.path, digest, answers, totals.params, totals.macs, entry.seconds + seconds)

    def _answers(self, network: Network, digest: str, label: str) -> tuple[Tensor, float]:
        """Logits for the whole test set, kept under the digest of what gave them."""
        key = key_of(
            kind="answers", of=digest, data=self.job.data.digest, spec=[self.job.spec.mean, self.job.spec.std],
            code=source_digest(_HERE.parent / "images.py"), machine=_machine(), versions=targets.versions(("torch",)),
        )  # fmt: skip

        def make(folder: Path, _: Path) -> None:
            found = logits(network, self.job.data.test, self.job.spec, track=self.watch.track, label=f"{label}: testing")
            save_file({"logits": found.contiguous()}, folder / "answers.safetensors")

        entry = self.store.keep(key, make)
        return load_file(entry.path / "answers.safetensors")["logits"], entry.seconds

    def _step_row(self, model: Model, *, judged: bool) -> None:
        started = time.perf_counter()
        runtime = self.job.runtime
        assert self._baseline is not None
        written = self._write([(model, runtime), (self._baseline, runtime)])
        made, reference = written[model.digest, runtime.name], written[self._baseline.digest, runtime.name]
        for result in (made, reference):
            if isinstance(result, LoweringError):
                raise result
        assert isinstance(made, File) and isinstance(reference, File)
        accuracy = self._accuracy(model.answers)
        timing, seconds = self._latency(runtime, made, reference)
        findings = [verify.on_latency(timing, self.recipe.limits)]
        if model is self._baseline:
            findings = [Finding("pass", "the baseline that everything else is compared with")]
        elif judged:
            findings.insert(0, verify.on_accuracy(accuracy, self.recipe.limits))
        finding = verify.judge(*findings)
        if not judged:
            finding = Finding(finding.verdict, f"{finding.reason}; accuracy is judged after the fine-tuning that follows")
        self._add(Row(
            step=model.name, target=None, params=model.params, macs=model.macs, bytes=made.bytes, accuracy=accuracy,
            latency=timing, verification=None, undelegated=made.artifact.undelegated, verdict=finding.verdict,
            reason=finding.reason, seconds=model.seconds + made.seconds + seconds, name=self._label(model.name),
            precision="float32",
        ))  # fmt: skip
        self.watch.detail(f"checked in {time.perf_counter() - started:.0f} s")

    def _label(self, name: str) -> str:
        earlier = sum(row.step == name for row in self.report.rows)
        return f"{name} {earlier + 1}" if earlier else name

    def _accuracy(self, answers: Tensor) -> Any:
        assert self._baseline is not None
        reference = self._correct(self._baseline.answers)
        return statistics.accuracy(reference if answers is self._baseline.answers else self._correct(answers), reference)

    def _correct(self, answers: Tensor) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = (answers.argmax(1) == self.job.data.test.labels).numpy()
        return right

    # -- files -------------------------------------------------------------------------------------------------------

    def _write(self, orders: Sequence[tuple[Model, Target]]) -> dict[tuple[str, str], File | LoweringError]:
        """The files for (model, target) pairs, two at a time in worker processes; those kept already are taken."""
        results: dict[tuple[str, str], File | LoweringError] = {}
        pending = []
        for model, target in dict.fromkeys(orders):
            key = self._file_key(model, target)
            if (entry := self.store.find(key)) is not None:
                results[model.digest, target.name] = _file(entry)
            else:
                aside = self.store.root / "scratch" / f"lowering-{key[:24]}"
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                order = lower.Order(model.folder, target.name, aside, self._stem(model))
                pending.append((model, target, key, aside, lower.submit(self.pool, order), time.perf_counter()))
        label = "writing " + ", ".join(dict.fromkeys(target.name for _, target, *_ in pending))
        for model, target, key, aside, future, started in self.watch.track(pending, label, len(pending)):
            failure = lower.outcome(future, target.name)
            if failure is None:
                results[model.digest, target.name] = self._keep_file(key, aside, time.perf_counter() - started)
            else:
                results[model.digest, target.name] = failure
            shutil.rmtree(aside, ignore_errors=True)
        return results

    def _keep_file(self, key: str, aside: Path, seconds: float) -> File:
        entry = self.store.keep(key, lambda folder, _: _move_into(aside, folder))
        return dataclasses.replace(_file(entry), seconds=seconds)

    def _stem(self, model: Model) -> str:
        return "".join(c if c.isalnum() or c in "_-" else "_" for c in f"{self.recipe.name}-{model.name}")

    def _file_key(self, model: Model, target: Target) -> str:
        return key_of(
            kind="file",
            model=model.digest,
            stem=self._stem(model),
            shape=self.job.data.shape,
            target=target.name,
            code=[source_digest(Path(inspect.getfile(target.export))), source_digest(_HERE.parent / "lower.py")],
            versions=targets.versions(("torch", "torchao", *targets.packages(target))),
        )

    def _runner(self, target: Target, file: File) -> tuple[Runner, float]:
        """The loaded file, and the milliseconds that loading took."""
        assert target.load is not None
        if file.artifact.path not in self._runners:
            started = time.perf_counter()
            runner = target.load(file.artifact.path, self.recipe.threads)
            self._runners[file.artifact.path] = (runner, 1000 * (time.perf_counter() - started))
        return self._runners[file.artifact.path]

    def _latency(self, target: Target, ours: File, baseline: File) -> tuple[Latency, float]:
        key = key_of(
            kind="latency", ours=ours.digest, baseline=baseline.digest, target=target.name, threads=self.recipe.threads,
            machine=_machine(), versions=targets.versions(targets.packages(target)),
            code=source_digest(_HERE.parent / "latency.py"),
        )  # fmt: skip

        def make(folder: Path, _: Path) -> None:
            found = self._time(target, ours, baseline)
            (folder / "latency.json").write_text(json.dumps(found.to_json()), encoding="utf-8")

        entry = self.store.keep(key, make)
        return Latency.from_json(json.loads((entry.path / "latency.json").read_text(encoding="utf-8"))), entry.seconds

    def _time(self, target: Target, ours: File, baseline: File) -> Latency:
        image = normalise(self.job.data.test.batch(torch.tensor([0])), self.job.spec)
        mine, theirs = self._runner(target, ours)[0], self._runner(target, baseline)[0]
        self.watch.detail(f"timing on {target.name} …")
        found = latency.interleave({"ours": lambda: mine(image), "baseline": lambda: theirs(image)})
        ratio, interval = statistics.ratio_interval(found["ours"].blocks, found["baseline"].blocks)
        if ours.digest == baseline.digest:
            ratio, interval = 1.0, (1.0, 1.0)
        return Latency(
            on=target.name, batch=1, threads=self.recipe.threads, p50_ms=found["ours"].percentile(50),
            p90_ms=found["ours"].percentile(90), ratio_to_baseline=ratio, ci95=interval,
        )  # fmt: skip

    def _artifact_row(self, model: Model, target: Target, made: File, baseline: File | None) -> None:
        grade, runner, load_ms, why = self._open(target, made)
        findings = [verify.on_grade(grade, why), verify.on_coverage(made.artifact.undelegated, self.recipe.limits)]
        accuracy = agreement = timing = None
        seconds = made.seconds
        if runner is not None:
            answers, took = self._answers(runner, f"{grade} {target.name} {made.digest}", target.name)
            accuracy, agreement = self._accuracy(answers), agree(answers, model.answers)
            findings[:0] = [verify.on_accuracy(accuracy, self.recipe.limits), verify.on_agreement(agreement, self.recipe.limits)]
            seconds += took
        if target.load is not None and baseline is not None:
            timing, took = self._latency(target, made, baseline)
            findings.insert(0, verify.on_latency(timing, self.recipe.limits))
            seconds += took
        finding = verify.judge(*findings)
        path = self._deliver(target, made)
        self.report.artifacts.append(
            ArtifactFile(target=target.name, path=path.as_posix(), sha256=made.digest, bytes=made.bytes)
        )
        self._add(Row(
            step="artifact", target=target.name, params=model.params, macs=model.macs, bytes=made.bytes, accuracy=accuracy,
            latency=timing, verification=grade, undelegated=made.artifact.undelegated, verdict=finding.verdict,
            reason=finding.reason, seconds=seconds, precision=made.artifact.precision, agreement=agreement,
            facts=made.artifact.facts, load_ms=load_ms,
        ))  # fmt: skip

    def _open(self, target: Target, made: File) -> tuple[Grade, Runner | None, float | None, str]:
        """The best evaluator that this host has for a file: its runtime, a reference, or none and why."""
        if target.load is not None:
            runner, load_ms = self._runner(target, made)
            return "runtime", runner, load_ms, ""
        if target.reference is not None:
            try:
                return "reference", target.reference(made.artifact.path), None, ""
            except targets.TargetError as error:
                return "written", None, None, str(error)
        return "written", None, None, f"{target.name} has no runtime on {platform.system()} and no reference evaluator"

    def _deliver(self, target: Target, made: File) -> Path:
        """Copy a file into the report's folder, whole or not at all; returns its path relative to that folder."""
        relative = Path("artifacts") / target.name / made.artifact.path.name
        place = self.job.out / relative
        aside = place.with_name(f".{place.name}.partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        (shutil.copytree if made.artifact.path.is_dir() else shutil.copy2)(made.artifact.path, aside)
        _remove(place)
        aside.rename(place)
        return relative

    def _lost_row(self, model: Model, target: Target, failure: LoweringError) -> Row:
        return Row(
            step="artifact", target=target.name, params=model.params, macs=model.macs, bytes=None, accuracy=None,
            latency=None, verification=None, undelegated=(), verdict="fail", reason=str(failure), seconds=0.0,
        )  # fmt: skip

    def _add(self, row: Row) -> None:
        self.report.rows.append(row)
        self.report.write(self.job.out)
        self.failed = self.failed or row.verdict == "fail"
        self.watch.row(row)


def agree(answers: Tensor, reference: Tensor) -> Agreement:
    """A file's logits against its PyTorch model's, both [N, classes], image by image."""
    return Agreement(
        top1=float((answers.argmax(1) == reference.argmax(1)).float().mean()),
        max_abs=float((answers - reference).abs().max()),
        n=len(answers),
    )


def host_environment(threads: int) -> dict[str, Any]:
    """The report's ``environment``."""
    from pipeline.report import environment

    return environment(threads)


def _times(stage: Stage) -> bool:
    """Whether a stage's outcome depends on what it measures on this machine; such stages say so."""
    return bool(getattr(stage, "times", False))


def _machine() -> str:
    return f"{platform.machine()} {cpu_name()}"


def _file(entry: Entry) -> File:
    artifact = lower.read_artifact(entry.path)
    path = artifact.path
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return File(artifact, file_digest(path), sum(p.stat().st_size for p in files), entry.seconds)


def _move_into(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        path.rename(folder / path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


__all__ = ["Base", "Bench", "agree", "run", "share_grids"]
