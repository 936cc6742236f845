"""CIFAR-10 in its binary layout, on files of 40 records; on the whole set where it lies on this machine."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise import calib_data
from edgewise.calib_data import DataError, cifar10

FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
RECORDS = 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files of 40 records; the first pixel of each plane tells the file, the record and the plane."""
    monkeypatch.setattr(cifar10, "_RECORDS", RECORDS)
    for number, name in enumerate(FILES):
        records = np.zeros((RECORDS, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(RECORDS) % 10
        records[:, 1], records[:, 2] = number, np.arange(RECORDS)
        records[:, 1 + 1024], records[:, 1 + 2048 + 32] = 101, 102
        records.tofile(tmp_path / name)
    return tmp_path


def test_parts(place: Path) -> None:
    data = calib_data.load(f"cifar10:{place}")
    assert (len(data.train), len(data.calib), len(data.test)) == (180, 20, 40)
    assert (data.shape, data.flip, data.classes[9]) == ((3, 32, 32), True, "truck")
    assert torch.bincount(data.calib.labels).tolist() == [2] * 10
    both = torch.cat([part.batch(torch.arange(len(part))) for part in (data.train, data.calib)])
    assert len(set(zip(both[:, 0, 0, 0].tolist(), both[:, 0, 0, 1].tolist(), strict=True))) == 200
    assert both[:, 0, 0, 0].max() == 4


def test_test_part_is_in_file_order_and_planes_are_channels(place: Path) -> None:
    test = calib_data.load(f"cifar10:{place}").test
    images = test.batch(torch.arange(40))
    assert images[:, 0, 0, 1].tolist() == list(range(40))
    assert images[:, 0, 0, 0].unique().tolist() == [5]
    assert (images[:, 1, 0, 0] == 101).all() and (images[:, 2, 1, 0] == 102).all()
    assert test.labels.tolist() == [index % 10 for index in range(40)]


def test_inner_folder_and_class_names(place: Path) -> None:
    inner = place / "cifar-10-batches-bin"
    inner.mkdir()
    for name in FILES:
        (place / name).rename(inner / name)
    (inner / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert calib_data.load(f"cifar10:{place}").classes == tuple("abcdefghij")


def test_missing_file(place: Path) -> None:
    (place / FILES[2]).unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: .*wanted, found none; unpack cifar-10-binary\.tar\.gz"):
        calib_data.load(f"cifar10:{place}")


def test_python_version_is_recognised(place: Path) -> None:
    (place / FILES[0]).rename(place / "data_batch_1")
    with pytest.raises(DataError, match="the folder holds the Python version"):
        calib_data.load(f"cifar10:{place}")


@pytest.mark.parametrize(
    ("size", "found"),
    [(3073 * 40 - 1, "39 whole ones and 3072 bytes"), (3073 * 39, "39 whole"), (3073 * 41, "41 whole"), (0, "0 whole")],
)
def test_wrong_number_of_records(place: Path, size: int, found: str) -> None:
    os.truncate(place / "test_batch.bin", size)
    with pytest.raises(DataError, match=rf"test_batch\.bin: 40 records of 3073 bytes are wanted, found {found}"):
        calib_data.load(f"cifar10:{place}")


def test_label_out_of_range(place: Path) -> None:
    with (place / FILES[1]).open("r+b") as stream:
        stream.seek(3073 * 7)
        stream.write(bytes([10]))
    with pytest.raises(DataError, match=r"data_batch_2\.bin: labels in 0 … 9 are wanted, image 7 has label 10"):
        calib_data.load(f"cifar10:{place}")


def test_missing_class(place: Path) -> None:
    for name in FILES[:5]:
        records = np.fromfile(place / name, dtype=np.uint8).reshape(-1, 3073)
        records[records[:, 0] == 9, 0] = 8
        records.tofile(place / name)
    with pytest.raises(DataError, match="none was found of class 9"):
        calib_data.load(f"cifar10:{place}")


def test_wrong_number_of_class_names(place: Path) -> None:
    (place / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt: 10 class names are wanted, found 2"):
        calib_data.load(f"cifar10:{place}")


@pytest.mark.skipif("EDGEWISE_CIFAR10" not in os.environ, reason="EDGEWISE_CIFAR10 does not name a folder of CIFAR-10")
def test_whole_set() -> None:
    data = calib_data.load(f"cifar10:{os.environ['EDGEWISE_CIFAR10']}")
    assert (len(data.train), len(data.calib), len(data.test)) == (49_000, 1000, 10_000)
    assert [torch.bincount(part.labels).unique().tolist() for part in (data.train, data.calib, data.test)] == [
        [4900],
        [100],
        [1000],
    ]
    # The published channel means of the training images, to three digits.
    mean = data.train.batch(torch.arange(0, 49_000, 5)).float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3)
