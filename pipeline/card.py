"""The card beside a written file: what it is, what it is fed, and what was measured on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError
from pipeline.resolve import Job
from pipeline.rows import Row, decode, encode
from pipeline.store import write_whole

_SUFFIX = ".card.json"


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
    mean: tuple[float, ...]
    """What the file's input is normalised with: (bytes / 255 − mean) / std."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    max_drop: float
    row: Row
    """What was measured when the file was made."""
    checkpoint: str = ""
    """Name of the network's folder under ``checkpoints`` of the report's folder; empty: none was kept."""


def path_of(artifact: Path) -> Path:
    """Where a file's card lies."""
    return artifact.with_name(artifact.name + _SUFFIX)


def write(artifact: Path, sha256: str, row: Row, job: Job, checkpoint: str) -> None:
    """Write the card beside a delivered file."""
    card = Card(
        target=row.target or "",
        sha256=sha256,
        recipe=job.recipe.name,
        model=job.recipe.model,
        data_digest=job.data.digest,
        seed=job.recipe.seed,
        input_shape=job.data.shape,
        mean=tuple(job.spec.mean),
        std=tuple(job.spec.std),
        classes=job.data.classes,
        max_drop=job.recipe.limits.max_drop,
        row=row,
        checkpoint=checkpoint,
    )
    text = json.dumps(encode(card), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path_of(artifact), text.encode())


def read(artifact: Path) -> Card:
    """The card of a file. Raises RequestError, naming it, when there is none or it is damaged."""
    place = path_of(artifact)
    try:
        document: Any = json.loads(place.read_text(encoding="utf-8"))
        return decode(Card, document, place.name)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"cannot read {place}: {error}. A run writes this card beside its file; keep the two together"
        ) from error


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
