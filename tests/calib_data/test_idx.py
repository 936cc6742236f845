"""idx files, plain and gzipped, whole and broken."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise import calib_data
from edgewise.calib_data import DataError

Broken = Callable[[bytes], bytes]


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write(place: Path, name: str, content: bytes, packed: bool = False) -> None:
    if packed:
        (place / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (place / name).write_bytes(content)


def fill(place: Path, packed: bool = False, dot: str = "-", shift: int = 0) -> Path:
    """40 training and 6 test images of 2×3; image n holds n, its label is n % 4 (+ shift)."""
    for part, count in (("train", 40), ("t10k", 6)):
        images = np.repeat(np.arange(count), 6).reshape(count, 2, 3)
        write(place, f"{part}-images{dot}idx3-ubyte", idx(images), packed)
        write(place, f"{part}-labels{dot}idx1-ubyte", idx(np.arange(count) % 4 + shift), packed)
    return place


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_parts(tmp_path: Path, packed: bool, dot: str) -> None:
    data = calib_data.load(f"idx:{fill(tmp_path, packed, dot)}")
    assert (len(data.train), len(data.calib), len(data.test)) == (36, 4, 6)
    assert (data.shape, data.classes, data.flip) == ((1, 2, 3), ("0", "1", "2", "3"), False)
    assert data.calib.labels.sort().values.tolist() == [0, 1, 2, 3]
    test = data.test.batch(torch.tensor([5, 0]))
    assert test.shape == (2, 1, 2, 3)
    assert test[:, 0, 1, 2].tolist() == [5, 0]
    for part in (data.train, data.calib, data.test):
        assert (part.batch(torch.arange(len(part)))[:, 0, 0, 0] % 4 == part.labels).all()


def test_packing_does_not_change_the_digest(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    plain = calib_data.load(f"idx:{fill(tmp_path / 'plain')}")
    assert calib_data.load(f"idx:{fill(tmp_path / 'packed', packed=True)}").digest == plain.digest


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    data = calib_data.load(f"idx:{fill(tmp_path, shift=1)}")
    assert len(data.classes) == 5
    assert int(data.train.labels.min()) == 1


def test_missing_file_names_what_lies_there(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: wanted this file or .*\.gz.*holds t10k-images-idx3"):
        calib_data.load(f"idx:{tmp_path}")


BROKEN: dict[str, tuple[Broken, str]] = {
    "another magic number": (lambda raw: struct.pack(">I", 2049) + raw[4:], "magic number 2051 is wanted.*found 2049"),
    "floats": (lambda raw: struct.pack(">I", 0x0D03) + raw[4:], "magic number 2051 is wanted.*found 3331"),
    "empty": (lambda raw: b"", "magic number 2051 is wanted.*found 0"),
    "cut header": (lambda raw: raw[:10], "a header of 16 bytes is wanted, found 10"),
    "cut body": (lambda raw: raw[:-1], r"240 bytes are wanted after the header \(40 × 2 × 3\), found .*239 bytes"),
    "too long": (lambda raw: raw + b"x", "240 bytes are wanted after the header.*found (241|more) bytes"),
    "no columns": (lambda raw: struct.pack(">4I", 2051, 40, 2, 0), "at least 1×1 are wanted"),
    "no images": (lambda raw: struct.pack(">4I", 2051, 0, 2, 3), "one label an image is wanted, found 0 images"),
    "half the images": (lambda raw: struct.pack(">4I", 2051, 20, 2, 3) + raw[16:136], "found 20 images.*40 labels"),
    "absurd header": (lambda raw: struct.pack(">4I", 2051, *[2**32 - 1] * 3) + raw[16:], "are wanted"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_images_file_is_named(tmp_path: Path, broken: str, packed: bool) -> None:
    fill(tmp_path, packed)
    change, message = BROKEN[broken]
    images = np.repeat(np.arange(40), 6).reshape(40, 2, 3)
    write(tmp_path, "train-images-idx3-ubyte", change(idx(images)), packed)
    with pytest.raises(DataError, match=message) as error:
        calib_data.load(f"idx:{tmp_path}")
    assert "train-images-idx3-ubyte" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    path = fill(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    raw = path.read_bytes()
    middle = len(raw) // 2
    flipped = raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :]
    path.write_bytes({"cut": raw[:middle], "flipped": flipped, "no gzip": b"plain text"}[damage])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        calib_data.load(f"idx:{tmp_path}")


def test_a_small_gzip_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    fill(tmp_path, packed=True)
    honest_bomb = struct.pack(">4I", 2051, 100_000, 28, 28) + bytes(100_000 * 28 * 28)
    write(tmp_path, "train-images-idx3-ubyte", honest_bomb, packed=True)
    with pytest.raises(DataError, match=r"at most 100 bytes a compressed byte are wanted.* promise 78400000"):
        calib_data.load(f"idx:{tmp_path}")


def test_train_and_test_of_different_sizes(tmp_path: Path) -> None:
    fill(tmp_path)
    write(tmp_path, "t10k-images-idx3-ubyte", idx(np.zeros((6, 3, 3))))
    with pytest.raises(DataError, match=r"images of one size are wanted, found \(2, 3\) in train and \(3, 3\)"):
        calib_data.load(f"idx:{tmp_path}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(40), "at least two classes are wanted, 1 was found"), (np.arange(40) % 2 * 5, "found of class 1")],
)
def test_classes_without_images(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    fill(tmp_path)
    write(tmp_path, "train-labels-idx1-ubyte", idx(labels))
    with pytest.raises(DataError, match=message):
        calib_data.load(f"idx:{tmp_path}")


def test_a_test_label_that_training_never_saw(tmp_path: Path) -> None:
    fill(tmp_path)
    write(tmp_path, "t10k-labels-idx1-ubyte", idx(np.array([0, 1, 2, 3, 4, 4])))
    with pytest.raises(DataError, match="none was found of class 4"):
        calib_data.load(f"idx:{tmp_path}")
