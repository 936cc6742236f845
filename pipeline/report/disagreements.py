"""The test images that a file puts into another class than the baseline does, to look at: a few of them, small."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgewise.calib_data import Part
from edgewise.report.document import Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


TITLE = "Images that changed class"
MOST = 24
SIDE = 72
"""Pixels of a thumbnail's longer side."""
_COLOURS = 64
"""Of a thumbnail: enough to see what is on it, at a third of the bytes."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One image that at least one file puts into another class than the baseline does; classes are numbers."""

    index: int
    """In the test part."""
    label: int
    baseline: int
    files: Mapping[str, int]
    """File -> its class, only where it is not the baseline's."""

    @property
    def lost(self) -> int:
        """How many files are wrong about an image that the baseline is right about."""
        return len(self.files) if self.baseline == self.label else 0


def find_changed(labels: Tensor, baseline: Tensor, files: Mapping[str, Tensor]) -> list[Changed]:
    """Every image that changed class, those first that most files got wrong, then those that most files changed.

    ``labels``: int64 [N]; ``baseline`` and each of ``files``: answers [N, classes].
    """
    first = baseline.argmax(1).tolist()
    others = {name: answers.argmax(1).tolist() for name, answers in files.items()}
    changes = []
    for index, (label, before) in enumerate(zip(labels.tolist(), first, strict=True)):
        classes_by_file = {name: classes[index] for name, classes in others.items() if classes[index] != before}
        if classes_by_file:
            changes.append(Changed(index=index, label=label, baseline=before, files=classes_by_file))
    return sorted(changes, key=lambda image: (-image.lost, -len(image.files), image.index))


def disagreement_section(
    part: Part, classes: Sequence[str], baseline: Tensor, files: Mapping[str, Tensor]
) -> Section | None:
    """A part of the page with the first of these images; None where no image changed class."""
    images = find_changed(part.labels, baseline, files)
    if not images:
        return None
    thumbnails = images[:MOST]
    losses = sum(image.lost > 0 for image in images)
    summary = (
        f"{len(images):,} of {len(part):,} test images are put into another class than the baseline puts them into by at "
        f"least one file; {losses:,} of them the baseline has right. "
        f"{'These are' if len(thumbnails) == len(images) else f'The first {len(thumbnails)} are'} shown, those that most files lose first."
    )
    figures = "".join(_image_figure(image, part, classes) for image in thumbnails)
    return Section(title=TITLE, html=f"<p>{escape(summary)}</p>{figures}")


def _image_figure(image: Changed, part: Part, classes: Sequence[str]) -> str:
    import torch

    pixels = part.batch(torch.tensor([image.index]))[0].permute(1, 2, 0).numpy()
    before = f"{classes[image.baseline]}{'' if image.baseline == image.label else ' (wrong)'}"
    lines = [f"<b>{escape(classes[image.label])}</b>", f"baseline: {escape(before)}"]
    for answer, names in _by_class(image.files).items():
        right = " (right)" if answer == image.label else ""
        lines.append(f"{escape(', '.join(names))}: {escape(classes[answer])}{right}")
    alt = escape(f"test image {image.index}, {classes[image.label]}")
    picture = f'<img src="data:image/png;base64,{encode_thumbnail(pixels)}" alt="{alt}">'
    return f"<figure>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _by_class(files: Mapping[str, int]) -> dict[int, list[str]]:
    names_by_class: dict[int, list[str]] = {}
    for name, answer in files.items():
        names_by_class.setdefault(answer, []).append(name)
    return names_by_class


def encode_thumbnail(pixels: NDArray[np.uint8]) -> str:
    """An image, uint8 [H, W, C] with one or three channels, as a small PNG in base64; other channels: the first alone."""
    from PIL import Image

    colour = pixels.shape[2] == 3
    picture = Image.fromarray(pixels if colour else pixels[:, :, 0])
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    if colour:
        picture = picture.quantize(_COLOURS)
    raw = io.BytesIO()
    picture.save(raw, "PNG", optimize=True)
    return base64.b64encode(raw.getvalue()).decode()
