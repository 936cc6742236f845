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
from edgewise.measure.cost.totals import count_costs
from edgewise.network import checkpoint
from edgewise.network.checkpoint import Checkpoint
from edgewise.network.plain_layers import with_plain_layers
from edgewise.network.start import begin_network
from edgewise.report.watch import Watch
from edgewise.run.artifacts import Source
from edgewise.run.job import Job
from edgewise.stage import Context, Stage, describe_stage, stage_name, traits_of
from edgewise.stages.training.settings import resolve_precision
from edgewise.store.entries import Entry, Store, key_of
from edgewise.store.json_values import encode
from edgewise.store.machine import machine_name
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
    moved_bytes: int
    """What its operators read and write for one image, in float32."""
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
        start = begin_network(self.job.base, self.job.images(), self.job.weights)
        if self.job.weights is None:
            return self._plain_baseline(self._entry(self.job.recipe.baseline, start.model, None, None))
        key = self._given_key(start.model)
        return self._plain_baseline(self.store.keep(key, lambda folder, _: self._save(start.model, folder)))

    def _plain_baseline(self, entry: Entry) -> Model:
        """A stored network with plain layers wherever one computes the same, which every later step can read."""
        plain, key = self._plain(entry)
        if plain is not None:
            stored_entry = self.store.keep(key, lambda folder, _: self._save(plain, folder))
            entry = dataclasses.replace(stored_entry, seconds=entry.seconds)
        return self.measure("baseline", entry)

    def _plain(self, entry: Entry) -> tuple[nn.Module | None, str]:
        """The network with plain layers and the key it is kept under; None where it has them already."""
        network = checkpoint.load(entry.path).model
        sizes = self.job.sizes_to_stand
        plain = with_plain_layers(network, *(self.job.images(size)[:1] for size in (None, *sizes))).model
        if plain is network:
            return None, ""
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        code = code_of(with_plain_layers)
        return plain, key_of(kind="plain", model=digest, shape=self.job.data.shape, sizes=sizes, code=code)

    def stage(
        self, stage: Stage, model: Model, baseline: Model, grid: Grid | None = None, name: str | None = None
    ) -> Model:
        """The outcome of one stage on a finished step's network. ``name``: what it is called; None: as the stage is."""
        name = stage_name(stage) if name is None else name
        return self.measure(name, self._entry(stage, self.load(model), baseline, grid, name))

    def count_kept(self) -> int:
        """How many of the recipe's steps, from the baseline on, the store holds; nothing is computed."""
        torch.manual_seed(self.job.recipe.seed)
        network = begin_network(self.job.base, self.job.images(), self.job.weights).model
        has_weights = self.job.weights is not None
        entry = self.store.find(
            self._given_key(network) if has_weights else self._key(self.job.recipe.baseline, network, None, None)
        )
        if entry is not None:
            plain, key = self._plain(entry)
            entry = entry if plain is None else self.store.find(key)
        count, teacher = 0, None
        for stage in self.job.recipe.stages:
            if entry is None:
                return count
            count, network = count + 1, checkpoint.load(entry.path).model
            teacher = teacher or checkpoint.digest(Checkpoint(self.job.base, network))
            entry = self.store.find(self._key(stage, network, teacher, None))
        return count + (entry is not None)

    def _given_key(self, network: nn.Module) -> str:
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        return key_of(kind="given", model=digest, shape=self.job.data.shape)

    def load(self, model: Model) -> nn.Module:
        """A fresh copy of a finished step's network, rebuilt from its checkpoint."""
        return checkpoint.load(model.folder).model

    def measure(self, name: str, entry: Entry) -> Model:
        """Evaluate a stored network over the whole test set and count what it costs."""
        network = checkpoint.load(entry.path).model
        digest = checkpoint.digest(Checkpoint(self.job.base, network))
        answers, seconds = self.answers(network, digest, name)
        totals = count_costs(network, self.job.data.shape)
        return Model(
            name=name,
            folder=entry.path,
            digest=digest,
            answers=answers,
            params=totals.params,
            macs=totals.macs,
            moved_bytes=totals.moved_bytes,
            seconds=entry.seconds + seconds,
            facts=_read_facts(entry.path),
        )

    def answers(self, network: Network, digest: str, label: str, fed: Fed = "normalised") -> tuple[Tensor, float]:
        """Logits for the whole test set, kept under the digest of what gave them, and the seconds they took."""
        return self._answers(network, self.job.data.test, self.job.data.digest, digest, label, fed)

    def answers_at(
        self, size: Size, most: int, network: Network, digest: str, label: str, fed: Fed = "normalised"
    ) -> tuple[Tensor, float]:
        """As ``answers``, for at most ``most`` images of the test set at another size (height, width)."""
        part, text = resized.sample_resized(self.job.data.test, size, most), f"{label} at {show_size(size)}"
        return self._answers(network, part, f"{self.job.data.digest} {size} {most}", digest, text, fed)

    def _answers(
        self, network: Network, part: Part, images: str, digest: str, label: str, fed: Fed
    ) -> tuple[Tensor, float]:
        key = key_of(
            kind="logits",
            of=digest,
            data=images,
            fed=fed,
            spec=[self.job.spec.mean, self.job.spec.std],
            code=code_of(compute_logits, resized),
            machine=machine_name(),
            versions=targets.versions(("torch",)),
        )

        def make(folder: Path, _: Path) -> None:
            answers = compute_logits(
                network,
                part,
                self.job.spec,
                batch=None if self.job.by_batches else 1,
                track=self.watch.track,
                label=f"{label}: testing",
                fed=fed,
            )
            save_file({"logits": answers.contiguous()}, folder / "answers.safetensors")

        entry = self.store.keep(key, make)
        self.looked.add(digest)
        return load_file(entry.path / "answers.safetensors")["logits"], entry.seconds

    def _entry(
        self, stage: Stage, network: nn.Module, baseline: Model | None, grid: Grid | None, name: str = "baseline"
    ) -> Entry:
        def make(folder: Path, scratch: Path) -> None:
            self.watch.say(f"{name} …")
            torch.manual_seed(self.job.recipe.seed)
            teacher = None if baseline is None else self.load(baseline)
            facts: dict[str, Any] = {}
            context = self._context(scratch, teacher, grid, facts.__setitem__)
            self._save(stage(network, dataclasses.replace(context, kept=kept)), folder)
            (folder / _FACTS).write_text(json.dumps(encode(facts), indent=1), encoding="utf-8")

        def kept(other: Stage) -> nn.Module | None:
            entry = self.store.find(self._key(other, network, baseline.digest if baseline else None, grid))
            return None if entry is None else checkpoint.load(entry.path).model

        key = self._key(stage, network, baseline.digest if baseline else None, grid)
        return self.store.keep(key, make, note=self.watch.detail)

    def _context(
        self, scratch: Path, teacher: nn.Module | None, grid: Grid | None, fact: Callable[[str, Any], None]
    ) -> Context:
        recipe = self.job.recipe
        return Context(
            spec=self.job.spec,
            data=self.job.given,
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
            machine=machine_name(),
        )

    def _key(self, stage: Stage, network: nn.Module, teacher: str | None, grid: Grid | None) -> str:
        recipe, spec = self.job.recipe, self.job.spec
        traits = traits_of(stage)
        return key_of(
            kind="stage",
            stage=describe_stage(stage),
            code=code_of(type(stage)),
            model=checkpoint.digest(Checkpoint(self.job.base, network)),
            teacher=teacher,
            data=self.job.given.digest,
            spec=[spec.mean, spec.std, spec.classifier],
            grid=None if grid is None else grid.to_json(),
            seed=recipe.seed,
            device=[recipe.device, resolve_precision(traits.precision, recipe.device) if traits.precision else None],
            runtime=[recipe.runtime, recipe.threads, machine_name()] if traits.times else None,
            threads=torch.get_num_threads(),
            versions=targets.versions(_PACKAGES),
        )

    def _save(self, network: nn.Module, folder: Path) -> None:
        checkpoint.save(Checkpoint(self.job.base, network), folder)
        (folder / "input.json").write_text(json.dumps({"shape": list(self.job.data.shape)}), encoding="utf-8")


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / _FACTS
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts


def as_quantized(model: Model, float_model: Model) -> Model:
    """A quantized step with the costs of the float network it was captured from."""
    return dataclasses.replace(
        model, params=float_model.params, macs=float_model.macs, moved_bytes=float_model.moved_bytes
    )
