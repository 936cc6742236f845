"""The contract between a recipe, its stages and the run.

A stage is a frozen dataclass that is called with a model and a context and returns a *new* model; its fields are its
settings, its entry in the report and part of its key in the step store. A recipe is a value that holds stages; a Python
function returns it, a derived recipe calls that function and replaces fields.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, Len

from edgewise import settings
from edgewise.errors import RequestError
from edgewise.images.preprocess import OUTSIDE, Preprocess
from edgewise.settings import CheckedElsewhere, check_fields
from edgewise.stage import Stage, describe_stage, traits_of
from edgewise.targets import USUAL, Packaging
from edgewise.targets import names as target_names
from edgewise.verify.gates import Limits

if TYPE_CHECKING:
    from edgewise.stages.quantize import Quantize
    from edgewise.stages.train import Train

FileType = Literal["float", "float32", "float16", "int8", "int8-weights", "palette"]
"""A precision, or ``float``: the target's usual float type."""
OnFailure = Literal["stop", "back off", "skip"]

LONGEST_NAME = 64
"""Characters of a recipe's name, which its folder and its files carry."""


@check_fields
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is determined by."""

    name: str
    model: Annotated[str, Len(1, 4096)]
    """A registered name, or path/to/net.py:function."""
    data: Annotated[str, Len(1, 4096)]
    """A data set: reader or reader:PATH."""
    baseline: Train
    """How the baseline is trained when no weights are given."""
    weights: Annotated[str, Len(1, 4096)] | None = None
    """A safetensors file or a weights-only checkpoint to start from."""
    stages: tuple[Annotated[Stage, CheckedElsewhere()], ...] = ()
    """Steps on the float network, in order."""
    quantize: Quantize | None = None
    """Quantization-aware training, once per grid that the targets share; None: the files are float."""
    targets: tuple[str, ...] = ("onnx",)
    runtime: str = "onnx"
    """The declared runtime: its milliseconds judge the float steps."""
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Threads of every runtime while it is timed."""
    limits: Limits = field(default_factory=Limits)
    target_limits: Mapping[str, Limits] = field(default_factory=dict)
    """Target's name -> what its files may cost, in place of ``limits``: ``{"xnnpack": replace(limits, max_bytes=60_000)}``."""
    on_failure: OnFailure = "stop"
    """What becomes of a run whose step fails a gate. stop: it ends there. back off: the step is tried again with a milder
    setting, up to ``trials`` settings in all, and the run ends if the last fails too. skip: the run goes on from the
    network before the step."""
    trials: Annotated[int, Interval(ge=1, le=100)] = 3
    """Settings that ``back off`` tries, the recipe's own included."""
    packaging: Packaging = USUAL
    """How the files are written: precision, image sizes, labels (the data's, where none are given)."""
    preprocess: Preprocess = OUTSIDE
    """What the files do themselves: normalise a camera's bytes, turn logits into probabilities."""
    candidates: tuple[FileType, ...] = ()
    """What each target writes a file in, where it can; every file is judged, and the fastest that passes is recommended.
    Empty: one file a target, int8 where the recipe quantizes. ``float`` is the target's usual float type."""
    device: Literal["cpu", "cuda"] = "cpu"
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    mean: tuple[float, ...] | None = None
    """Per-channel mean that images are normalised with, in units of 0 to 1; None: what the network's file says."""
    std: tuple[float, ...] | None = None
    """Per-channel deviation, likewise."""
    expect_top1: Annotated[float, Interval(ge=0, le=1)] | None = None
    """The top-1 that the given weights are known to reach on this data; a baseline below it ends the run."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        for stage in self.stages:
            describe_stage(stage)
            traits_of(stage)
        settings.check(self.packaging)
        if self.packaging.sizes is not None:
            settings.check(self.packaging.sizes)
        _check_candidates(self)
        if not self.targets:
            raise RequestError(f"recipe {self.name!r} names no target; give at least one, for example --target onnx")
        if len(set(self.targets)) < len(self.targets):
            raise RequestError(f"recipe {self.name!r} names a target twice: {', '.join(self.targets)}")
        if unknown := [name for name in self.target_limits if name not in target_names()]:
            raise RequestError(
                f"recipe {self.name!r} limits a target {unknown[0]!r} that there is not; choices: {', '.join(target_names())}"
            )
        _check_description(self)

    def describe(self) -> dict[str, Any]:
        """Every field as JSON-serialisable values; each stage carries its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["stages"] = [describe_stage(stage) for stage in self.stages]
        fields["baseline"] = describe_stage(self.baseline)
        fields["quantize"] = None if self.quantize is None else describe_stage(self.quantize)
        fields["limits"] = dataclasses.asdict(self.limits)
        fields["target_limits"] = {name: dataclasses.asdict(limits) for name, limits in self.target_limits.items()}
        fields["packaging"] = dataclasses.asdict(self.packaging)
        fields["preprocess"] = dataclasses.asdict(self.preprocess)
        fields["targets"] = list(self.targets)
        fields["candidates"] = list(self.candidates)
        return fields


def _check_name(name: str) -> None:
    """A recipe's name is that of its folder under ``runs`` and begins its files' names; it is no path."""
    if not re.fullmatch(r"\w[\w .+-]*", name) or len(name) > LONGEST_NAME or name.strip(" .") != name:
        raise RequestError(
            f"Recipe.name: wanted letters, digits, '_', '-', '+', '.' and spaces, at most {LONGEST_NAME} of them, found {name!r:.80}"
        )


def _check_candidates(recipe: Recipe) -> None:
    if len(set(recipe.candidates)) < len(recipe.candidates):
        raise RequestError(f"recipe {recipe.name!r} names a candidate twice: {', '.join(recipe.candidates)}")
    if "int8" in recipe.candidates and recipe.quantize is None:
        raise RequestError(f"recipe {recipe.name!r} asks for an int8 file and has no quantize step; give it one")


def _check_description(recipe: Recipe) -> None:
    """A recipe is kept in the report and in keys, as JSON."""
    try:
        json.dumps(recipe.describe(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"recipe {recipe.name!r} holds a value that cannot be kept as JSON: {error}; a stage's fields are numbers, text, "
            "and tuples and dataclasses of those"
        ) from error
