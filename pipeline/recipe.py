"""The contract between a recipe, its stages and the run.

A stage is a frozen dataclass that is called with a model and a context and returns a *new* model; its fields are its
settings, its entry in the report and part of its key in the step store. A recipe is a value that holds stages; a Python
function returns it, a derived recipe calls that function and replaces fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from pipeline.errors import RequestError
from pipeline.preprocess import OUTSIDE, Preprocess
from targets import USUAL, Packaging, Precision

if TYPE_CHECKING:
    from torch import nn

    from calib_data import Data
    from models import Spec
    from pipeline.finetune import Train
    from pipeline.quantize import Quantize
    from pipeline.store import Store
    from targets import Grid


Candidate = Precision | Literal["float"]


class Track(Protocol):
    """Shows progress: yields the items of ``items`` one by one under ``description``."""

    def __call__(self, items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]: ...


def silent(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """A Track that shows nothing."""
    yield from items


def unheard(text: str) -> None:
    """A note that nobody is told."""


def unkept(name: str, value: Any) -> None:
    """A fact that nobody keeps."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may know besides the model it is given."""

    spec: Spec
    data: Data
    scratch: Path
    """A folder of the step's own that survives a kill until the step is finished: checkpoints of long training."""
    device: str = "cpu"
    seed: int = 0
    threads: int = 1
    """Threads of the declared runtime when a stage times something on it."""
    runtime: str = "onnx"
    """The target whose milliseconds decide."""
    baseline: nn.Module | None = None
    """The unmodified trained network: the teacher of distillation. None while it is being trained itself."""
    grid: Grid | None = None
    """The quantization grid that the recipe's targets share."""
    track: Track = silent
    note: Callable[[str], None] = unheard
    """Tells the person watching one line."""
    fact: Callable[[str, Any], None] = unkept
    """Keeps ``value`` (JSON types) under ``name`` among the facts of the step's row, with the step's result."""
    store: Store | None = None
    """Where measurements are kept for later steps and runs; None: nowhere."""
    machine: str = ""
    """What a time measured here belongs to, a part of such a measurement's key."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images the model is fed."""
        return self.data.shape


class Stage(Protocol):
    """A step of a recipe."""

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Return a new model; ``model`` is left as it was. Raises StageError when the step cannot be done."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step or a file may cost; beyond it the gate fails. Fractions and ratios, all relative to the baseline."""

    max_drop: float = 0.01
    """Largest loss of top-1 accuracy (0.01 = one percentage point)."""
    max_latency_ratio: float = 1.0
    """Largest time of a compressed network over the baseline's, on the same runtime."""
    same_work_ratio: float = 1.05
    """The same for one that saved no multiply-accumulates and claims no speed, such as folded or fine-tuned: two files of
    equal work differ by where they lie in memory (Mytkowicz et al. 2009), and many rounds make that a certain difference."""
    max_step_ratio: float = 1.0
    """Largest time of a step that changed the number of MACs over the time of the network it was given."""
    min_agreement: float = 0.99
    """Smallest share of test images to which a file gives the same class as the PyTorch model it was made from."""
    max_undelegated: int | None = None
    """Largest number of operators that the target's backend may leave outside; None: reported, not limited."""
    max_undelegated_macs: float | None = None
    """Largest share of a file's MACs that the backend, or in an int8 file the int8 kernels, may leave outside."""

    def __post_init__(self) -> None:
        in_range("max_drop", self.max_drop, 0, 1)
        in_range("max_latency_ratio", self.max_latency_ratio, 0, float("inf"))
        in_range("same_work_ratio", self.same_work_ratio, 0, float("inf"))
        in_range("max_step_ratio", self.max_step_ratio, 0, float("inf"))
        in_range("min_agreement", self.min_agreement, 0, 1)
        if self.max_undelegated is not None:
            in_range("max_undelegated", self.max_undelegated, 0, float("inf"))
        if self.max_undelegated_macs is not None:
            in_range("max_undelegated_macs", self.max_undelegated_macs, 0, 1)


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
    packaging: Packaging = USUAL
    """How the files are written: precision, image sizes, labels (the data's, where none are given)."""
    preprocess: Preprocess = OUTSIDE
    """What the files do themselves: normalise a camera's bytes, turn logits into probabilities."""
    candidates: tuple[Candidate, ...] = ()
    """What each target writes a file in, where it can; every file is judged, and the fastest that passes is recommended.
    Empty: one file a target, int8 where the recipe quantizes. ``float`` is the target's usual float type."""
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_candidates(self)
        if not self.targets:
            raise RequestError(f"recipe {self.name!r} names no target; give at least one, for example --target onnx")
        if len(set(self.targets)) < len(self.targets):
            raise RequestError(f"recipe {self.name!r} names a target twice: {', '.join(self.targets)}")
        in_range("threads", self.threads, 1, 1024)

    def describe(self) -> dict[str, Any]:
        """Every field as JSON-serialisable values; each stage carries its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["stages"] = [describe(stage) for stage in self.stages]
        fields["baseline"] = describe(self.baseline)
        fields["quantize"] = None if self.quantize is None else describe(self.quantize)
        fields["limits"] = dataclasses.asdict(self.limits)
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


def stage_name(stage: Stage) -> str:
    """The name a stage goes by in the report: its class in lower case."""
    return type(stage).__name__.lower()


def describe(stage: Stage) -> dict[str, Any]:
    """A stage as JSON-serialisable values: its name and every field."""
    value: Any = stage
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise RequestError(f"a stage must be a frozen dataclass with __call__, found {stage!r}")
    fields: dict[str, Any] = dataclasses.asdict(value)
    return {"stage": stage_name(stage)} | fields


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise RequestError unless ``low`` ≤ ``value`` ≤ ``high``; a NaN never is."""
    if not low <= value <= high:
        raise RequestError(f"{name} must lie in {low:g} … {high:g}, found {value:g}")
