"""The steps on the float network: done once, kept in the store, evaluated over the whole test set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgewise import targets
from edgewise.calib_data import Part
from edgewise.images import resized
from edgewise.images.preprocess import Fed
from edgewise.images.sizes import Size, show_size
from edgewise.measure.answers import Network, compute_logits
from edgewise.measure.cost.totals import count
from edgewise.network import architecture, checkpoint, weights
from edgewise.network.checkpoint import Checkpoint
from edgewise.report.watch import Watch
from edgewise.run.artifacts import Source
from edgewise.run.job import Job
from edgewise.stage import Context, Stage, describe, stage_name, traits_of
from edgewise.stages.training.settings import resolve_precision
from edgewise.store.entries import Entry, Store, key_of
from edgewise.store.json_values import encode
from edgewise.store.machine import machine
from edgewise.store.sources import code_of
from edgewise.targets import Grid

_PACKAGES = ("torch", "torchao", "lightning-fabric", "numpy")
_FACTS = "facts.json"


@dataclass(frozen=True)
class Model(Source):
    """A finished step's network and how it answers."""

    answers: Tensor
    """float32 logits [N, classes] for the test images."""
    params: int
    macs: int
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the stage told about its work, for the report."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Does the float steps of one run."""

    job: Job
    store: Store
    watch: Watch
    looked: set[str] = field(default_factory=set, compare=False)
    """Digests of the networks and files that were judged on the test set."""

    def baseline(self) -> Model:
        """The given weights, or a network trained by the recipe's ``baseline`` stage."""
        torch.manual_seed(self.job.recipe.seed)
        network = architecture.build(self.job.base).eval()
        if self.job.weights is None:
            return self.measure("baseline", self._entry(self.job.recipe.baseline, network, None, None))
        weights.load_weights(network, self.job.weights)
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        key = key_of(kind="given", model=digest, shape=self.job.data.shape)
        return self.measure("baseline", self.store.keep(key, lambda folder, _: self._save(network, folder)))

    def stage(self, stage: Stage, model: Model, baseline: Model, grid: Grid | None = None) -> Model:
        """The outcome of one stage on a finished step's network."""
        return self.measure(stage_name(stage), self._entry(stage, self.load(model), baseline, grid))

    def load(self, model: Model) -> nn.Module:
        """A fresh copy of a finished step's network, rebuilt from its checkpoint."""
        return checkpoint.load(model.folder).model

    def measure(self, name: str, entry: Entry) -> Model:
        """Evaluate a stored network over the whole test set and count what it costs."""
        network = checkpoint.load(entry.path).model
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        answers, seconds = self.answers(network, digest, name)
        totals = count(network, self.job.data.shape)
        return Model(
            name=name,
            folder=entry.path,
            digest=digest,
            answers=answers,
            params=totals.params,
            macs=totals.macs,
            seconds=entry.seconds + seconds,
            facts=_facts(entry.path),
        )

    def answers(self, network: Network, digest: str, label: str, fed: Fed = "normalised") -> tuple[Tensor, float]:
        """Logits for the whole test set, kept under the digest of what gave them, and the seconds they took."""
        return self._answers(network, self.job.data.test, self.job.data.digest, digest, label, fed)

    def answers_at(
        self, size: Size, most: int, network: Network, digest: str, label: str, fed: Fed = "normalised"
    ) -> tuple[Tensor, float]:
        """As ``answers``, for at most ``most`` images of the test set at another size (height, width)."""
        part, told = resized.sample_resized(self.job.data.test, size, most), f"{label} at {show_size(size)}"
        return self._answers(network, part, f"{self.job.data.digest} {size} {most}", digest, told, fed)

    def _answers(
        self, network: Network, part: Part, images: str, digest: str, label: str, fed: Fed
    ) -> tuple[Tensor, float]:
        key = key_of(
            kind="answers",
            of=digest,
            data=images,
            fed=fed,
            spec=[self.job.spec.mean, self.job.spec.std],
            code=code_of(compute_logits, resized),
            machine=machine(),
            versions=targets.versions(("torch",)),
        )

        def make(folder: Path, _: Path) -> None:
            found = compute_logits(
                network, part, self.job.spec, track=self.watch.track, label=f"{label}: testing", fed=fed
            )
            save_file({"logits": found.contiguous()}, folder / "answers.safetensors")

        entry = self.store.keep(key, make)
        self.looked.add(digest)
        return load_file(entry.path / "answers.safetensors")["logits"], entry.seconds

    def _entry(self, stage: Stage, network: nn.Module, baseline: Model | None, grid: Grid | None) -> Entry:
        def make(folder: Path, scratch: Path) -> None:
            self.watch.say(f"{'baseline' if baseline is None else stage_name(stage)} …")
            torch.manual_seed(self.job.recipe.seed)
            teacher = None if baseline is None else self.load(baseline)
            facts: dict[str, Any] = {}
            self._save(stage(network, self._context(scratch, teacher, grid, facts.__setitem__)), folder)
            (folder / _FACTS).write_text(json.dumps(encode(facts), indent=1), encoding="utf-8")

        return self.store.keep(self._key(stage, network, baseline, grid), make, note=self.watch.detail)

    def _context(
        self, scratch: Path, teacher: nn.Module | None, grid: Grid | None, fact: Callable[[str, Any], None]
    ) -> Context:
        recipe = self.job.recipe
        return Context(
            spec=self.job.spec,
            data=self.job.data,
            scratch=scratch,
            device=recipe.device,
            seed=recipe.seed,
            threads=recipe.threads,
            runtime=recipe.runtime,
            baseline=teacher,
            grid=grid,
            track=self.watch.track,
            note=self.watch.detail,
            fact=fact,
            store=self.store,
            machine=machine(),
        )

    def _key(self, stage: Stage, network: nn.Module, baseline: Model | None, grid: Grid | None) -> str:
        recipe, spec = self.job.recipe, self.job.spec
        traits = traits_of(stage)
        return key_of(
            kind="stage",
            stage=describe(stage),
            code=code_of(type(stage)),
            model=checkpoint.digest(Checkpoint(self.job.base, network)),
            teacher=None if baseline is None else baseline.digest,
            data=self.job.data.digest,
            spec=[spec.mean, spec.std, spec.classifier],
            grid=None if grid is None else grid.to_json(),
            seed=recipe.seed,
            device=[recipe.device, resolve_precision(traits.precision, recipe.device) if traits.precision else None],
            runtime=[recipe.runtime, recipe.threads, machine()] if traits.times else None,
            threads=torch.get_num_threads(),
            versions=targets.versions(_PACKAGES),
        )

    def _save(self, network: nn.Module, folder: Path) -> None:
        checkpoint.save(Checkpoint(self.job.base, network), folder)
        (folder / "input.json").write_text(json.dumps({"shape": list(self.job.data.shape)}), encoding="utf-8")


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / _FACTS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def as_quantized(model: Model, float_model: Model) -> Model:
    """A quantized step with the costs of the float network it was captured from."""
    return dataclasses.replace(model, params=float_model.params, macs=float_model.macs)
