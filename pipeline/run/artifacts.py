"""Written files: made in worker processes, kept in the store, loaded, timed, and delivered into the report's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgewise import targets
from edgewise.errors import LoweringError
from edgewise.files import lower, parts
from edgewise.files.open import Grade, Opened, open_file
from edgewise.images.feed import feed_images
from edgewise.images.normalise import channel_order, per_channel
from edgewise.images.preprocess import OUTSIDE
from edgewise.images.wrapper import Wrapper
from edgewise.measure import latency as measure_latency
from edgewise.measure import memory, statistics
from edgewise.measure.memory import ColdStart
from edgewise.measure.values import Latency
from edgewise.report.watch import Watch
from edgewise.run.job import Job
from edgewise.store.entries import Entry, Key, Store, key_of
from edgewise.store.json_values import decode, encode_fields
from edgewise.store.machine import machine_name
from edgewise.store.sources import code_of
from edgewise.store.whole import copy_whole, replace_whole
from edgewise.targets import Artifact, Packaging, Precision, Target
from edgewise.verify import layerwise
from edgewise.verify.gates import Finding

_ATTEMPTS = 20
"""Measurements of one pair of files that are kept, at most."""


@dataclass(frozen=True)
class Source:
    """A network that files are written from."""

    name: str
    folder: Path
    """Its checkpoint."""
    digest: str


@dataclass(frozen=True)
class File:
    """A written file in the store."""

    artifact: Artifact
    digest: str
    bytes: int
    seconds: float


Written = dict[tuple[str, str], File | LoweringError]
"""(network's digest, target's name) -> its file, or why there is none."""


@dataclass(kw_only=True)
class Files:
    """Writes and loads files for one run."""

    job: Job
    store: Store
    pool: Executor
    watch: Watch
    precision: Precision | None = None
    """Written in place of the recipe's own."""
    _opened: dict[Path, Opened] = field(default_factory=dict)

    def write(self, orders: Sequence[tuple[Source, Target]]) -> Written:
        """The files for (network, target) pairs, two at a time; those that the store holds are taken from there."""
        results: Written = {}
        pending = []
        for source, target in dict.fromkeys(orders):
            key = self._key(source, target)
            if (entry := self.store.find(key)) is not None:
                results[source.digest, target.name] = _read_file(entry)
            else:
                aside = self.store.aside(key)
                order = lower.Order(
                    source.folder, target.name, aside, self._stem(source), self._packaging(source), self.baking
                )
                pending.append((source, target, key, aside, lower.submit_order(self.pool, order), time.perf_counter()))
        label = "writing " + ", ".join(dict.fromkeys(target.name for _, target, *_ in pending))
        for source, target, key, aside, future, start in self.watch.track(pending, label, len(pending)):
            failure = lower.await_outcome(future, target.name)
            results[source.digest, target.name] = failure or self._keep(key, aside, time.perf_counter() - start)
            shutil.rmtree(aside, ignore_errors=True)
        return results

    def _packaging(self, source: Source) -> Packaging:
        """The recipe's, with what a file should tell of itself where its format has a place for it."""
        packaging, spec = self.job.recipe.packaging, self.job.spec
        fields = {
            "recipe": self.job.recipe.name,
            "network": source.digest,
            "fed": self.job.recipe.preprocess.fed,
            "mean": json.dumps(list(spec.mean)),
            "std": json.dumps(list(spec.std)),
            "channels": channel_order(self.job.data.shape[0]),
        }
        packaging = dataclasses.replace(packaging, metadata={**fields, **packaging.metadata})
        return packaging if self.precision is None else dataclasses.replace(packaging, precision=self.precision)

    def evaluator(self, target: Target, grade: Grade, file: File) -> str:
        """What answers to images are kept under: the file, and the program that evaluates it."""
        code = code_of(target.reference) if grade == "reference" and target.reference else []
        versions = targets.versions(targets.packages(target))
        return key_of(kind="evaluator", grade=grade, target=target.name, file=file.digest, code=code, versions=versions)

    def at(self, precision: Precision | None) -> Files:
        """The same, writing another precision."""
        return dataclasses.replace(self, precision=precision)

    @property
    def baking(self) -> Wrapper:
        """What goes into every file around its network."""
        spec, channels = self.job.spec, self.job.data.shape[0]
        return Wrapper(
            preprocess=self.job.recipe.preprocess,
            mean=per_channel(spec.mean, channels),
            std=per_channel(spec.std, channels),
        )

    def _keep(self, key: str, aside: Path, seconds: float) -> File:
        entry = self.store.keep(key, lambda folder, _: _move_into(aside, folder), seconds)
        return _read_file(entry)

    def _stem(self, source: Source) -> str:
        name = "-".join(part for part in (self.job.recipe.name, source.name, self.precision) if part)
        return "".join(c if c.isalnum() or c in "_-" else "_" for c in name)

    def _key(self, source: Source, target: Target) -> str:
        return key_of(
            kind="file",
            model=source.digest,
            stem=self._stem(source),
            shape=self.job.data.shape,
            packaging=dataclasses.asdict(self._packaging(source)),
            baking=None if self.job.recipe.preprocess == OUTSIDE else dataclasses.asdict(self.baking),
            target=target.name,
            code=code_of(target.export, lower),
            versions=targets.versions(("torch", "torchao", *targets.packages(target))),
        )

    def facts(self, target: Target, file: File) -> Mapping[str, Any]:
        """What a target tells about a file, its vendor's estimate of the cost included where it has one."""
        facts = dict(file.artifact.facts)
        if target.estimate is not None:
            with contextlib.suppress(targets.TargetError):
                facts["estimate"] = dataclasses.asdict(target.estimate(file.artifact.path))
        return facts

    def open(self, target: Target, file: File) -> Opened:
        """A file in the best evaluator of this host, on the recipe's threads; opened once."""
        path = file.artifact.path
        if path not in self._opened:
            self._opened[path] = open_file(target, path, self.job.recipe.threads)
        return self._opened[path]

    def _runtime(self, target: Target, file: File) -> Opened:
        """A file in its runtime. Raises LoweringError where that will not take it."""
        handle = self.open(target, file)
        if handle.runner is None:
            raise LoweringError(f"{target.name}: the written file cannot be loaded: {handle.reason}")
        return handle

    def judged_latency(
        self, target: Target, ours: File, baseline: File, judge: Callable[[Latency], Finding]
    ) -> tuple[Latency, float, Finding]:
        """As ``latency``, with what ``judge`` finds. Times of a busy machine that left it open are measured again, once a run:
        the machine may be free now."""
        seconds = 0.0
        for attempt in range(_ATTEMPTS):
            fresh = self.store.find(self._latency_key(target, ours, baseline, attempt)) is None
            timing, taken = self.latency(target, ours, baseline, attempt)
            seconds, finding = seconds + taken, judge(timing)
            disturbed = timing.conditions is not None and bool(timing.conditions.disturbances)
            if fresh or finding.verdict != "not-checked" or not disturbed:
                break
        return timing, seconds, finding

    def latency(self, target: Target, ours: File, baseline: File, attempt: int = 0) -> tuple[Latency, float]:
        """Batch-1 latency of a file against the baseline's on the same target, and the seconds taken. ``attempt``: how often
        it was measured before."""

        def make(folder: Path, _: Path) -> None:
            timing = self._time(target, ours, baseline)
            (folder / "latency.json").write_text(json.dumps(encode_fields(timing)), encoding="utf-8")

        entry = self.store.keep(self._latency_key(target, ours, baseline, attempt), make)
        record = json.loads((entry.path / "latency.json").read_text(encoding="utf-8"))
        return decode(Latency, record), entry.seconds

    def _latency_key(self, target: Target, ours: File, baseline: File, attempt: int) -> Key:
        return key_of(
            kind="latency",
            ours=ours.digest,
            baseline=baseline.digest,
            target=target.name,
            threads=self.job.recipe.threads,
            machine=machine_name(),
            versions=targets.versions(targets.packages(target)),
            code=code_of(measure_latency, statistics),
            **({"attempt": attempt} if attempt else {}),
        )

    def _time(self, target: Target, ours: File, baseline: File) -> Latency:
        image = feed_images(self.job.data.test.batch(torch.tensor([0])), self.job.spec, self.job.recipe.preprocess.fed)
        mine, theirs = self._runtime(target, ours).answer, self._runtime(target, baseline).answer
        self.watch.detail(f"timing on {target.name}")
        same = ours.digest == baseline.digest
        contenders = {"ours": lambda: mine(image)} | ({} if same else {"baseline": lambda: theirs(image)})
        timing = measure_latency.measure(contenders, threads=self.job.recipe.threads)
        own = timing.samples["ours"]
        reference = timing.samples.get("baseline", own)
        ratio, interval = statistics.ratio_interval(own.blocks, reference.blocks)
        return Latency(
            on=target.name,
            batch=1,
            threads=self.job.recipe.threads,
            p50_ms=own.percentile(50),
            p90_ms=own.percentile(90),
            ratio_to_baseline=ratio,
            ci95=interval,
            baseline_ms=reference.percentile(50),
            conditions=timing.conditions("ours"),
        )

    def cold_start(self, target: Target, file: File) -> tuple[ColdStart, float]:
        """What a fresh process pays for a file, as ``memory.cold_start`` measures it, and the seconds taken."""
        threads, shape, input_kind = self.job.recipe.threads, self.job.data.shape, self.job.recipe.preprocess.fed
        key = key_of(
            kind="memory",
            file=file.digest,
            target=target.name,
            threads=threads,
            shape=shape,
            machine=machine_name(),
            versions=targets.versions(("torch", *targets.packages(target))),
            code=code_of(memory),
        )

        def make(folder: Path, _: Path) -> None:
            self.watch.detail(f"measuring memory on {target.name}")
            start_cost = memory.cold_start(target.name, file.artifact.path, threads, shape, input_kind)
            (folder / "memory.json").write_text(json.dumps(dataclasses.asdict(start_cost)), encoding="utf-8")

        entry = self.store.keep(key, make)
        record = json.loads((entry.path / "memory.json").read_text(encoding="utf-8"))
        return ColdStart(**record), entry.seconds

    def layers_apart(self, target: Target, file: File, source: Source, index: Sequence[int]) -> list[str] | None:
        """Names of the layers that a file computes otherwise than its network, on the test images at ``index``, in the
        graph's order; None where the target lets no intermediate value out."""
        if target.inside is None:
            return None
        key = key_of(
            kind="layers",
            file=file.digest,
            network=source.digest,
            target=target.name,
            images=[self.job.data.digest, list(index)],
            machine=machine_name(),
            versions=targets.versions(("torch", *targets.packages(target))),
            code=code_of(layerwise, target.inside),
        )

        def make(folder: Path, _: Path) -> None:
            self.watch.detail(f"comparing layers on {target.name}")
            layers = self._compare_layers(target, file, source, index)
            (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")

        entry = self.store.keep(key, make)
        names: list[str] | None = json.loads((entry.path / "layers.json").read_text(encoding="utf-8"))
        return names

    def _compare_layers(self, target: Target, file: File, source: Source, index: Sequence[int]) -> list[str] | None:
        recipe = self.job.recipe
        images = feed_images(self.job.data.test.batch(torch.tensor(index)), self.job.spec, recipe.preprocess.fed)
        program = lower.capture_program(source.folder, recipe.packaging.sizes, self.baking)
        layers = layerwise.layers_apart(target, file.artifact.path, program, images, file.artifact.precision)
        return None if layers is None else [layer.name for layer in layers]

    def deliver(self, target: Target, file: File) -> Path:
        """Copy a file into the report's folder, whole or not at all; returns its path relative to that folder."""
        relative = Path("artifacts") / target.name / file.artifact.path.name
        place = self.job.out / relative
        for root in reversed(parts.roots(file.artifact.path)):
            copy_whole(root, place.with_name(root.name))
        return relative

    def deliver_checkpoint(self, source: Source) -> str:
        """Copy the network that files were written from into the report's folder; returns its name there."""
        name = f"{self._stem(source)}-{source.digest[:12]}"
        place = self.job.out / "checkpoints" / name
        with replace_whole(place) as aside:
            aside.mkdir()
            for file in ("model.json", "model.safetensors", "input.json"):
                shutil.copyfile(source.folder / file, aside / file)
        return name


def _read_file(entry: Entry) -> File:
    artifact = lower.read_artifact(entry.path)
    return File(artifact, parts.digest(artifact.path), parts.size(artifact.path), entry.seconds)


def _move_into(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        path.rename(folder / path.name)
