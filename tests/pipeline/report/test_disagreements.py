"""Images that changed class: which, in what order, and how they are shown."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgewise.calib_data._parts import MemoryPart
from edgewise.report.disagreements import MOST, Changed, disagreement_section, encode_thumbnail, find_changed
from edgewise.report.markup import sanitize_html


def answering(*classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


LABELS = torch.tensor([0, 1, 2, 0, 1])
BASELINE = answering(0, 1, 2, 1, 1)
FILES = {"one": answering(0, 2, 2, 0, 1), "two": answering(0, 2, 1, 2, 1)}


def part(size: int = 8, channels: int = 1) -> MemoryPart:
    return MemoryPart(torch.arange(5 * channels * size * size).reshape(5, channels, size, size).to(torch.uint8), LABELS)


def test_images_that_most_files_lose_come_first() -> None:
    assert find_changed(LABELS, BASELINE, FILES) == [
        Changed(index=1, label=1, baseline=1, files={"one": 2, "two": 2}),
        Changed(index=2, label=2, baseline=2, files={"two": 1}),
        Changed(index=3, label=0, baseline=1, files={"one": 0, "two": 2}),
    ]


def test_each_image_is_shown_with_what_was_said_of_it() -> None:
    made = disagreement_section(part(), ("<cat>", "dog", "eel"), BASELINE, FILES)
    assert made is not None and made.html is not None
    assert "3 of 5 test images" in made.html and "2 of them the baseline has right" in made.html
    assert "one, two: eel" in made.html and "baseline: dog (wrong)<br>one: &lt;cat&gt; (right)<br>two: eel" in made.html
    shown = sanitize_html(made.html)
    assert shown.count('<img src="data:image/png;base64,') == 3 and "<cat>" not in shown
    assert shown.count("<figcaption>") == 3, "nothing of it is dropped by the page"


def test_there_is_no_such_part_where_nothing_changed() -> None:
    assert disagreement_section(part(), ("a", "b", "c"), BASELINE, {"one": BASELINE}) is None
    assert disagreement_section(part(), ("a", "b", "c"), BASELINE, {}) is None


def test_of_many_images_a_few_are_shown() -> None:
    n = MOST + 7
    many = MemoryPart(torch.zeros(n, 3, 4, 4, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
    made = disagreement_section(many, ("a", "b", "c"), answering(*[0] * n), {"one": answering(*[1] * n)})
    assert made is not None and made.html is not None
    assert made.html.count("<img") == MOST and f"The first {MOST} are shown" in made.html


@pytest.mark.parametrize(("shape", "size"), [((8, 8, 1), (8, 8)), ((200, 100, 3), (36, 72)), ((10, 20, 4), (20, 10))])
def test_thumbnails_are_small_pictures_of_the_same_shape(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    raw = base64.b64decode(encode_thumbnail(pixels))
    assert Image.open(io.BytesIO(raw)).size == size and len(raw) < 6000


def test_a_small_grey_image_is_kept_to_the_bit() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(encode_thumbnail(pixels))))), pixels[:, :, 0]
    )
