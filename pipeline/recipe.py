"""The contract between a recipe, its stages and the run.

A stage is a frozen dataclass that is called with a model and a context and returns a *new* model; its fields are its
settings, its entry in the report and part of its key in the step store. A recipe is a value that holds stages; a Python
function returns it, a derived recipe calls that function and replaces fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgewise.errors import RequestError
from edgewise.images.preprocess import OUTSIDE, Preprocess
from edgewise.targets import USUAL, Packaging, Precision
from edgewise.targets import names as target_names

if TYPE_CHECKING:
    from edgewise.stages.quantize import Quantize
    from edgewise.stages.train import Train
from edgewise.stage import Stage, describe, in_range
from edgewise.verify.gates import Limits

FileType = Precision | Literal["float"]
OnFailure = Literal["stop", "back off", "skip"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is determined by."""

    name: str
    model: str
    """A registered name, or path/to/net.py:function."""
    data: str
    """A data set: reader or reader:PATH."""
    baseline: Train
    """How the baseline is trained when no weights are given."""
    weights: str | None = None
    """A safetensors file or a weights-only checkpoint to start from."""
    stages: tuple[Stage, ...] = ()
    """Steps on the float network, in order."""
    quantize: Quantize | None = None
    """Quantization-aware training, once per grid that the targets share; None: the files are float."""
    targets: tuple[str, ...] = ("onnx",)
    runtime: str = "onnx"
    """The declared runtime: its milliseconds judge the float steps."""
    threads: int = 1
    """Threads of every runtime while it is timed."""
    limits: Limits = field(default_factory=Limits)
    target_limits: Mapping[str, Limits] = field(default_factory=dict)
    """Target's name -> what its files may cost, in place of ``limits``: ``{"xnnpack": replace(limits, max_bytes=60_000)}``."""
    on_failure: OnFailure = "stop"
    """What becomes of a run whose step fails a gate. stop: it ends there. back off: the step is tried again with a milder
    setting, up to ``trials`` settings in all, and the run ends if the last fails too. skip: the run goes on from the
    network before the step."""
    trials: int = 3
    """Settings that ``back off`` tries, the recipe's own included."""
    packaging: Packaging = USUAL
    """How the files are written: precision, image sizes, labels (the data's, where none are given)."""
    preprocess: Preprocess = OUTSIDE
    """What the files do themselves: normalise a camera's bytes, turn logits into probabilities."""
    candidates: tuple[FileType, ...] = ()
    """What each target writes a file in, where it can; every file is judged, and the fastest that passes is recommended.
    Empty: one file a target, int8 where the recipe quantizes. ``float`` is the target's usual float type."""
    device: str = "cpu"
    seed: int = 0
    mean: tuple[float, ...] | None = None
    """Per-channel mean that images are normalised with, in units of 0 to 1; None: what the network's file says."""
    std: tuple[float, ...] | None = None
    """Per-channel deviation, likewise."""
    expect_top1: float | None = None
    """The top-1 that the given weights are known to reach on this data; a baseline below it ends the run."""

    def __post_init__(self) -> None:
        _check_candidates(self)
        if not self.targets:
            raise RequestError(f"recipe {self.name!r} names no target; give at least one, for example --target onnx")
        if len(set(self.targets)) < len(self.targets):
            raise RequestError(f"recipe {self.name!r} names a target twice: {', '.join(self.targets)}")
        if unknown := [name for name in self.target_limits if name not in target_names()]:
            raise RequestError(
                f"recipe {self.name!r} limits a target {unknown[0]!r} that there is not; choices: {', '.join(target_names())}"
            )
        if self.on_failure not in get_args(OnFailure):
            choices = ", ".join(get_args(OnFailure))
            raise RequestError(f"recipe {self.name!r}: on_failure must be one of {choices}, found {self.on_failure!r}")
        in_range("trials", self.trials, 1, 100)
        in_range("threads", self.threads, 1, 1024)
        if self.expect_top1 is not None:
            in_range("expect_top1", self.expect_top1, 0, 1)

    def describe(self) -> dict[str, Any]:
        """Every field as JSON-serialisable values; each stage carries its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["stages"] = [describe(stage) for stage in self.stages]
        fields["baseline"] = describe(self.baseline)
        fields["quantize"] = None if self.quantize is None else describe(self.quantize)
        fields["limits"] = dataclasses.asdict(self.limits)
        fields["target_limits"] = {name: dataclasses.asdict(limits) for name, limits in self.target_limits.items()}
        fields["packaging"] = dataclasses.asdict(self.packaging)
        fields["preprocess"] = dataclasses.asdict(self.preprocess)
        fields["targets"] = list(self.targets)
        fields["candidates"] = list(self.candidates)
        return fields


def _check_candidates(recipe: Recipe) -> None:
    known = ("float", *get_args(Precision))
    if unknown := [candidate for candidate in recipe.candidates if candidate not in known]:
        raise RequestError(f"unknown candidate {unknown[0]!r} in recipe {recipe.name!r}; choices: {', '.join(known)}")
    if "int8" in recipe.candidates and recipe.quantize is None:
        raise RequestError(f"recipe {recipe.name!r} asks for an int8 file and has no quantize step; give it one")
