"""Images that are there twice are found, and refused before anything is trained unless the recipe allows them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgewise import calib_data
from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart
from edgewise.errors import RequestError
from edgewise.images import overlap
from edgewise.images.overlap import find_overlap
from edgewise.run.job import check_overlap
from edgewise.verify.gates import Limits


def planted(repeated: int = 0, leaked: int = 0) -> Data:
    """Random images of which some test images come again in the test part, or in training or calibration."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        MemoryPart(torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8), torch.zeros(n).long())
        for n in (60, 20, 40)
    ]
    test = parts[2].images
    for index in range(repeated):
        test[20 + index] = test[0]
    for index in range(leaked):
        parts[index % 2].images[index] = test[1 + index]
    return Data(
        name="planted", train=parts[0], calib=parts[1], test=parts[2], classes=("a", "b"), shape=(1, 4, 4), digest=""
    )


def test_none_in_the_ready_set() -> None:
    found = find_overlap(calib_data.load("digits"))
    assert found is not None and (found.n, found.repeated, found.leaked) == (540, (), ())


def test_repeated_and_leaked_images_are_named() -> None:
    found = find_overlap(planted(repeated=2, leaked=3))
    assert found is not None and (found.repeated, found.leaked) == ((20, 21), (1, 2, 3))


@pytest.mark.parametrize(
    ("repeated", "leaked", "words"), [(1, 0, "1 of 40 test images comes"), (0, 2, "2 of 40 test images are")]
)
def test_they_are_refused_with_what_to_do(repeated: int, leaked: int, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        check_overlap(planted(repeated, leaked), Limits())
    assert "max_repeated" in str(caught.value) or "max_leaked" in str(caught.value)
    check_overlap(planted(repeated, leaked), Limits(max_repeated=0.05, max_leaked=0.05))
    check_overlap(planted(), Limits())


def test_a_set_that_is_too_large_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_BYTES", 120 * 16 - 1)
    assert find_overlap(planted(repeated=1)) is None
    monkeypatch.setattr(overlap, "MOST_BYTES", 120 * 16)
    assert find_overlap(planted(repeated=1)) is not None


def test_limits_are_shares() -> None:
    for name in ("max_repeated", "max_leaked"):
        with pytest.raises(RequestError, match=name):
            dataclasses.replace(Limits(), **{name: 1.5})
