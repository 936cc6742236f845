"""The embedded default."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise import calib_data
from edgewise.calib_data import Data, DataError

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits() -> Data:
    return calib_data.load("digits")


def test_sizes_and_strata(digits: Data) -> None:
    assert (len(digits.train), len(digits.calib), len(digits.test)) == (1077, 180, 540)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert not digits.flip
    whole = torch.bincount(torch.cat([digits.train.labels, digits.calib.labels, digits.test.labels]))
    exact = whole * 540 / 1797
    assert (torch.bincount(digits.test.labels) - exact).abs().max() < 1


def test_grey_levels_are_stretched_to_bytes(digits: Data) -> None:
    levels = digits.test.batch(torch.arange(540)).unique().tolist()
    assert levels == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]


def test_every_image_is_in_one_part_with_its_own_label(digits: Data) -> None:
    raw = sklearn_datasets.load_digits()
    wanted = sorted(
        (image.tobytes(), int(label))
        for image, label in zip(np.rint(raw.images * 255 / 16).astype(np.uint8), raw.target, strict=True)
    )
    found = []
    for part in (digits.train, digits.calib, digits.test):
        images = part.batch(torch.arange(len(part))).numpy()
        found += [(image.tobytes(), int(label)) for image, label in zip(images, part.labels, strict=True)]
    assert sorted(found) == wanted


def test_seed_decides_the_split(digits: Data) -> None:
    assert calib_data.load("digits", seed=0).digest == digits.digest
    assert calib_data.load("digits", seed=1).digest != digits.digest


def test_digest_is_the_one_in_the_readme(digits: Data) -> None:
    assert digits.digest in (Path(calib_data.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_a_path_is_refused() -> None:
    with pytest.raises(DataError, match="digits takes no path, found 'folder'"):
        calib_data.load("digits:folder")
