"""The card beside a written file: what it is, what it is fed, and what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import calib_data
from edgewise.calib_data import Data
from edgewise.errors import EvidenceError, RequestError
from edgewise.images.normalise import per_channel
from edgewise.images.preprocess import Fed
from edgewise.images.sizes import accepts_size
from edgewise.report.rows import Row
from edgewise.store.json_values import decode
from edgewise.store.reading import read_json
from edgewise.targets import Sizes
from edgewise.verify.golden import Record

if TYPE_CHECKING:
    pass


_SUFFIX = ".card.json"

PROBES = 16
"""Test images whose answers a card keeps."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything that re-checking a file needs besides the file and the data."""

    target: str
    sha256: str
    recipe: str
    model: str
    data_digest: str
    seed: int
    """Of the splits of the data."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of the images it was judged on."""
    mean: tuple[float, ...]
    """What images are normalised with, (bytes / 255 − mean) / std: by the file itself where it is fed bytes."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    max_drop: float
    row: Row
    """What was measured when the file was made."""
    recipe_fields: Mapping[str, Any] = field(default_factory=dict)
    """Every field of the recipe."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """The machine and the versions of the libraries that wrote and measured the file."""
    input: Mapping[str, Any] = field(default_factory=dict)
    """Shape, element type and meaning of what the file takes."""
    output: Mapping[str, Any] = field(default_factory=dict)
    """The same of what it gives."""
    golden: Record | None = None
    """Golden images and answers beside the file; None where nothing could run it."""
    checkpoint: str = ""
    """Name of the network's folder under ``checkpoints`` of the report's folder; empty: none was kept."""
    fed: Fed = "normalised"
    """float32 [1, C, H, W], normalised, or bytes as a camera gives them, uint8 [1, H, W, C]."""
    softmax: bool = False
    """Whether the file answers with probabilities instead of logits."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The image sizes (height, width) it accepts beside that of ``input_shape``; with ``ranged``, all between them too."""
    ranged: bool = False
    images: Mapping[str, Any] = field(default_factory=dict)
    """How its images were made from files (size, resize, interpolation), where they were."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, in the terms of SLSA provenance v1."""
    test_set_looks: int = 0
    """How many networks and files its run had judged on the test set by then, itself included: the more there were to choose
    from, the more the best of them flatters itself."""
    search_trials: int = 0
    """Of how many trials of a search, judged on calibration images, its recipe was the choice; 0: it was not searched for."""
    answers: tuple[tuple[float, ...], ...] = ()
    """What the file answered to the first test images; empty where nothing could run it."""

    def __post_init__(self) -> None:
        channels, *sides = self.input_shape
        if min(channels, *sides, *(side for size in self.sizes for side in size)) < 1:
            raise ValueError(f"wanted image sizes of at least 1×1, found {self.input_shape} and {self.sizes}")
        if not self.classes or any(len(answer) != len(self.classes) for answer in self.answers):
            raise ValueError(f"wanted answers for {len(self.classes)} classes")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std, default=0) <= 0:
            raise ValueError(f"wanted finite means and positive deviations, found {self.mean} and {self.std}")
        for values in (self.mean, self.std):
            per_channel(values, channels)

    @property
    def accepted(self) -> Sizes:
        """The image sizes it accepts."""
        return Sizes(choices=tuple(dict.fromkeys((self.input_shape[1:], *self.sizes))), ranged=self.ranged)

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether the file accepts images of this height and width."""
        return accepts_size(self.accepted, size)


def path_of(artifact: Path) -> Path:
    """Where a file's card lies."""
    return artifact.with_name(artifact.name + _SUFFIX)


def read(artifact: Path) -> Card:
    """The card of a file. Raises EvidenceError, naming it, when there is none or it is damaged."""
    place = path_of(artifact)
    try:
        return decode(Card, read_json(place), place.name)
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"cannot read {place}: {error}. A run writes this card beside its file; keep the two together"
        ) from error


def load_images(card: Card, data_name: str) -> Data:
    """A data set made into images as the card says, unless its name says otherwise, and numbered by the card's classes.

    Raises DataError where the names of its classes do not fit.
    """
    name, _ = calib_data.with_options(data_name, card.images)
    return calib_data.named_as(calib_data.load(name, card.seed), card.classes)


def checkpoint_of(artifact: Path, card: Card) -> Path:
    """The network that a file was written from, in the folder a run left them both in.

    Raises RequestError where there is none, and for a card that points out of that folder.
    """
    root = artifact.resolve().parents[2] / "checkpoints"
    name = card.checkpoint
    if name and (Path(name).name != name or name in (".", "..")):
        raise RequestError(f"the card of {artifact.name} names a checkpoint outside {root}: {name!r}")
    if not name or not (root / name / "model.json").is_file():
        raise RequestError(
            f"{artifact} has no checkpoint at {root / name}. A run leaves it there; keep the run's folder together, or "
            "give it with --checkpoint DIR"
        )
    return root / name
