"""The contract of a stage: a frozen dataclass that is called with a network and a context, and returns a new network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgewise.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

    from edgewise.calib_data import Data
    from edgewise.models import Spec
    from edgewise.targets import Grid


class Track(Protocol):
    """Shows progress: yields the items of ``items`` one by one under ``description``.

    ``total``: how many items there are; ``count``: how many images they hold together, whose rate is then told.
    """

    def __call__(
        self, items: Iterable[Any], description: str, total: int | None = None, count: int | None = None
    ) -> Iterator[Any]: ...


def track_silently(
    items: Iterable[Any], description: str, total: int | None = None, count: int | None = None
) -> Iterator[Any]:
    """A Track that shows nothing."""
    yield from items


def ignore_note(text: str) -> None:
    """A note that nobody is told."""


def nothing_kept(stage: Any) -> nn.Module | None:
    """No network of any other stage."""
    return None


def ignore_fact(name: str, value: Any) -> None:
    """A fact that nobody keeps."""


class Kept(Protocol):
    """A result that is kept."""

    @property
    def path(self) -> Path:
        """The folder of its files."""


class Keeper(Protocol):
    """Where results are kept: what a stage knows of the store, whose own code determines no result."""

    def keep(self, key: str, make: Callable[[Path, Path], None]) -> Kept:
        """The result under ``key``; where there is none, ``make(folder, scratch)`` fills its folder."""


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
    track: Track = track_silently
    note: Callable[[str], None] = ignore_note
    """Tells the person watching one line."""
    fact: Callable[[str, Any], None] = ignore_fact
    """Keeps ``value`` (JSON types) under ``name`` among the facts of the step's row, with the step's result."""
    store: Keeper | None = None
    """Where measurements are kept for later steps and runs; None: nowhere."""
    kept: Callable[[Any], nn.Module | None] = nothing_kept
    """The network that another stage made of the same one on the same grid, where the run has it; else None."""
    machine: str = ""
    """What a time measured here belongs to, a part of such a measurement's key."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images the model is fed."""
        return self.data.shape


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a run has to know of a stage beside its settings; each stage declares its own."""

    recovers: bool = False
    """Whether it wins back accuracy that a change of structure cost: the step before it is then judged after it."""
    cuts: bool = False
    """Whether it changes the structure at the cost of accuracy: cuts in a row before a stage that recovers are judged after it."""
    times: bool = False
    """Whether its outcome rests on times or files of the declared runtime, so that its key names runtime and machine."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] | None = None
    """The arithmetic that it trains in, as asked for (``Training.precision``); None: it does not train."""
    learns_from: Literal["nothing", "images", "labels"] = "nothing"
    """What it takes from the training images: nothing; how the network answers them, whatever their classes; or their
    labels, so that an image of every class is wanted."""
    decides: bool = False
    """Whether it decides by the accuracy on calibration images, so that they have to be labelled."""


class Stage(Protocol):
    """A step of a recipe: a frozen dataclass."""

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Return a new model; ``model`` is left as it was. Raises StageError when the step cannot be done."""


def stage_name(stage: Stage) -> str:
    """The name a stage goes by in the report: its class in lower case."""
    return type(stage).__name__.lower()


def describe_stage(stage: Stage) -> dict[str, Any]:
    """A stage as JSON-serialisable values: its name and every field."""
    value: Any = stage
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise RequestError(f"a stage must be a frozen dataclass with __call__, found {stage!r}")
    fields: dict[str, Any] = dataclasses.asdict(value)
    return {"stage": stage_name(stage)} | fields


def traits_of(stage: Stage) -> Traits:
    """What the stage declares of itself; raises RequestError for one that declares nothing."""
    traits: Any = getattr(stage, "traits", None)
    if not isinstance(traits, Traits):
        raise RequestError(
            f"the stage {stage_name(stage)!r} declares no traits, found {traits!r}; give its class "
            "'traits = edgewise.Traits()', with recovers=True if it wins back accuracy as Finetune does"
        )
    return traits


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise RequestError unless ``low`` ≤ ``value`` ≤ ``high``; a NaN never is."""
    if not low <= value <= high:
        raise RequestError(f"{name} must lie in {low:g} … {high:g}, found {value:g}")
