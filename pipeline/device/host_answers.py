"""The labelled slice of a bundle, and what the host's runtimes answer on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise import targets
from edgewise.device.card_facts import CardFacts
from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.calib_data import Data
    from edgewise.targets import Runner


class NotFinite(EdgewiseError, ValueError):
    """A file answers with what is no number; the message says to how many images."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The images of a slice."""

    images: NDArray[np.uint8]
    """[n, C, H, W]."""
    labels: NDArray[np.int64]
    """[n]."""

    @property
    def label_bytes(self) -> bytes:
        """Two bytes a label, the lower first."""
        return self.labels.astype("<u2").tobytes()


def choose(data: Data, count: int) -> Chosen:
    """So many test images, spread evenly over the test part."""
    import torch

    number = min(count, len(data.test))
    places = np.unique(np.linspace(0, len(data.test) - 1, number).round().astype(np.int64))
    index = torch.from_numpy(places)
    return Chosen(images=data.test.batch(index).numpy(), labels=data.test.labels[index].numpy())


def make_answerer() -> Callable[..., tuple[NDArray[np.int64] | None, str]]:
    """``classes``, for a process of its own, which a runtime may die in."""
    return classes


def classes(artifact: Path, card: CardFacts, chosen: Chosen) -> tuple[NDArray[np.int64] | None, str]:
    """The class that the best evaluator on this host gives each image, and its grade; None and "" where there is none.

    Raises NotFinite for a file whose answers name no class.
    """
    import torch

    from edgewise.images.feed import feed_images

    runner, grade = _open_evaluator(artifact, card.target)
    if runner is None:
        return None, ""
    answers: list[NDArray[np.int64]] = []
    unusable = 0
    for start in range(0, len(chosen.labels), 64):
        images = feed_images(torch.from_numpy(chosen.images[start : start + 64].copy()), card, card.fed)
        logits = runner(images)
        unusable += int((~logits.isfinite()).any(1).sum())
        answers.append(logits.argmax(1).numpy())
    if unusable:
        raise NotFinite(f"its answers to {unusable:,} of {len(chosen.labels):,} images are no finite numbers")
    return np.concatenate(answers), grade


def _open_evaluator(artifact: Path, name: str) -> tuple[Runner | None, str]:
    try:
        target = targets.get(name)
    except targets.MissingBackend:
        return None, ""
    if target.load is not None:
        return target.load(artifact, 1), "runtime"
    return (target.reference(artifact), "reference") if target.reference else (None, "")


def encode_classes(values: NDArray[Any]) -> str:
    """Class numbers as hexadecimal digits, four each."""
    return values.astype(">u2").tobytes().hex()


def decode_classes(text: str) -> NDArray[np.int64]:
    """The class numbers again. Raises ValueError for text that is none."""
    return np.frombuffer(bytes.fromhex(text), ">u2").astype(np.int64)
