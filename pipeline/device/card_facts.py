"""What a bundle takes from the card beside a file. The card is read as data: what writes it stands over this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgewise.errors import RequestError
from edgewise.images.preprocess import Fed
from edgewise.store.json_values import decode
from edgewise.store.reading import read_json

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """As a card has it."""

    worst: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """Golden answers beside the file, as a card has them."""

    sha256: str
    count: int
    cpu: str
    tolerance: Tolerance
    architecture: str = ""
    runtime: str = ""
    emulator: str = ""

    @property
    def made_on(self) -> dict[str, Any]:
        """Where the answers were given."""
        return {
            "architecture": self.architecture,
            "cpu": self.cpu,
            "runtime": self.runtime,
            "emulator": self.emulator,
        }


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The fields of a card that a bundle needs."""

    target: str
    sha256: str
    data_digest: str
    seed: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    max_drop: float
    fed: Fed = "normalised"
    softmax: bool = False
    golden: Record | None = None
    precision: str = ""
    failure: str = ""
    """Why the run failed the file; empty where it did not."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """How the images were prepared, as a reader's options; empty for a card that does not say."""


def read(artifact: Path) -> CardFacts:
    """Of the card beside a file. Raises RequestError where there is none or it is damaged."""
    place = artifact.with_name(artifact.name + ".card.json")
    try:
        document: Any = read_json(place)
        if not isinstance(document, Mapping):
            raise ValueError("wanted an object")
        fields = _known_fields(CardFacts, document)
        row = document.get("row") or {}
        fields["precision"] = row.get("precision") or ""
        fields["failure"] = (row.get("reason") or "its verdict is fail") if row.get("verdict") == "fail" else ""
        if fields.get("golden") is not None:
            fields["golden"] = _known_fields(Record, fields["golden"])
        return decode(CardFacts, fields, place.name)
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(
            f"cannot read {place}: {error}. A run writes this card beside its file; keep the two together"
        ) from error


def _known_fields(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key in kind.__dataclass_fields__}


def golden_path(artifact: Path) -> Path:
    """Where a file's golden images lie."""
    return artifact.with_name(artifact.name + ".golden.safetensors")
