"""Images and labels of one's own in .npz files."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise import calib_data
from edgewise.calib_data import Data, DataError

LABELS = np.arange(40) % 4
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 5, 7, 3), dtype=np.uint8)


def load(path: Path, **arrays: Any) -> Data:
    np.savez_compressed(path / "mine.npz", **arrays)
    return calib_data.load(f"arrays:{path / 'mine.npz'}")


def published(**changes: Any) -> dict[str, Any]:
    test = {"x_test": IMAGES[:8], "y_test": LABELS[:8]}
    return {"x_train": IMAGES, "y_train": LABELS, **test, **changes}


def test_published_parts(tmp_path: Path) -> None:
    data = load(tmp_path, **published(classes=np.array(["a", "b", "c", "d"])))
    assert (len(data.train), len(data.calib), len(data.test)) == (36, 4, 8)
    assert (data.shape, data.classes, data.flip) == ((3, 5, 7), ("a", "b", "c", "d"), False)
    assert np.array_equal(data.test.batch(torch.arange(8)).numpy(), IMAGES[:8].transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 1, 2, 3] * 2


def test_calibration_part_of_ones_own(tmp_path: Path) -> None:
    data = load(tmp_path, **published(x_calib=IMAGES[8:12], y_calib=LABELS[8:12]))
    assert (len(data.train), len(data.calib)) == (40, 4)
    assert np.array_equal(data.calib.batch(torch.arange(4)).numpy(), IMAGES[8:12].transpose(0, 3, 1, 2))


def test_split_by_the_seed(tmp_path: Path) -> None:
    data = load(tmp_path, images=IMAGES, labels=LABELS)
    # A fifth of 40, then a tenth of 32.
    assert (len(data.train), len(data.calib), len(data.test)) == (29, 3, 8)
    assert data.test.labels.sort().values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    again = calib_data.load(f"arrays:{tmp_path / 'mine.npz'}", seed=1)
    assert again.digest != data.digest
    images = [part.batch(torch.arange(len(part))) for part in (data.train, data.calib, data.test)]
    assert len({image.numpy().tobytes() for image in torch.cat(images)}) == 40


@pytest.mark.parametrize("layout", ["channels first", "grey", "grey with a channel", "column of labels", "floats"])
def test_layouts_and_types(tmp_path: Path, layout: str) -> None:
    images, labels = IMAGES, LABELS
    if layout == "channels first":
        images = IMAGES.transpose(0, 3, 1, 2)
    elif layout == "grey":
        images = IMAGES[..., 0]
    elif layout == "grey with a channel":
        images = IMAGES[..., :1]
    elif layout == "column of labels":
        labels = LABELS[:, None].astype(np.uint8)
    else:
        images = IMAGES.astype(np.float32) / 255
    data = load(tmp_path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    channels = 1 if "grey" in layout else 3
    wanted = IMAGES[..., :channels].transpose(0, 3, 1, 2)
    assert data.shape == (channels, 5, 7)
    assert np.array_equal(data.test.batch(torch.arange(40)).numpy(), wanted)
    assert data.test.labels.tolist() == LABELS.tolist()


def test_floats_are_rounded(tmp_path: Path) -> None:
    images = np.full((40, 2, 2), 0.5)  # 127.5 rounds to even, 128
    images[0, 0] = (0.0, 1.0)
    data = load(tmp_path, x_train=images, y_train=LABELS, x_test=images, y_test=LABELS)
    assert data.test.batch(torch.tensor([0])).flatten().tolist() == [0, 255, 128, 128]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "labels above the names": (
        published(classes=np.array(["a", "b", "c"])),
        r"\[y_train\]: labels in 0 … 2 are wanted, image 3 has label 3",
    ),
    "negative label": (
        published(y_test=LABELS[:8] - 1),
        r"\[y_test\]: labels in 0 … 3 are wanted, image 0 has label -1",
    ),
    "only negative labels": ({"images": IMAGES, "labels": LABELS * 0 - 5}, "are wanted, image 0 has label -5"),
    "huge label": (published(y_train=LABELS * 10**9), "labels below 48, the number of images, are wanted"),
    "empty class": (published(classes=np.array(list("abcde"))), "none was found of class 4"),
    "one class": (published(y_train=LABELS * 0, y_test=LABELS[:8] * 0), "at least two classes are wanted, 1 was found"),
    "counts": (published(y_train=LABELS[:39]), r"40 images in .*\[x_train\] and 39 labels in .*\[y_train\]"),
    "no image": (published(x_test=IMAGES[:0], y_test=LABELS[:0]), r"\[x_test\]: images are wanted, found an empty"),
    "wide integers": (published(x_train=IMAGES.astype(np.int64)), r"\[x_train\]: uint8, or floats .* found int64"),
    "normalised": (published(x_train=IMAGES / 255 * 2 - 1), r"\[x_train\]: floats in 0 … 1 are wanted, found -1 … 1"),
    "not a number": (published(x_test=np.full((8, 5, 7, 3), np.nan)), r"\[x_test\]: floats in 0 … 1 .* found nan"),
    "float labels": (published(y_train=LABELS / 1), r"\[y_train\]: integer labels are wanted, found float64"),
    "one-hot labels": (published(y_train=np.eye(4, dtype=int)[LABELS]), r"\(40, 4\); from one-hot rows, take argmax"),
    "five dimensions": (published(x_train=IMAGES[None]), r"\[x_train\]: images \[N, H, W\].* found \(1, 40, 5, 7, 3\)"),
    "two channels": (published(x_train=IMAGES[..., :2]), r"C = 1 or 3 are wanted, found \(40, 5, 7, 2\)"),
    "two readings": (published(x_train=IMAGES[:, :3]), r"found \(40, 3, 7, 3\), which can be read both ways"),
    "two shapes": (published(x_test=IMAGES[:8, :4]), r"found \(3, 5, 7\) in x_train, \(3, 4, 7\) in x_test"),
    "objects": (published(x_train=IMAGES.astype(object)), r"\[x_train\]: .* Python objects, which are never unpickled"),
    "object names": (published(classes=np.array(list("abcd"), dtype=object)), r"\[classes\]: .* never unpickled"),
    "numbers for names": (published(classes=np.arange(4)), r"\[classes\]: a list of names is wanted, found int64"),
    "other arrays": (
        {"pictures": IMAGES},
        "x_train, y_train, x_test, y_test, or images and labels, are wanted, found pic",
    ),
    "half a calibration part": (published(x_calib=IMAGES[:4]), "both x_calib and y_calib are wanted, found one"),
    "too few": ({"images": IMAGES[:2], "labels": LABELS[:2]}, "at least 3 images, found 2 of 2 classes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays(tmp_path: Path, wrong: str) -> None:
    arrays, message = WRONG[wrong]
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, **arrays)
    assert "mine.npz" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **published())
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[2000] ^= 0xFF
    path.write_bytes({"cut": raw[:-100], "flipped": raw, "text": b"no archive", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"mine\.npz: a whole \.npz file is wanted, found:.*write it again"):
        calib_data.load(f"arrays:{path}")


def with_member(path: Path, member: bytes) -> Path:
    np.savez(path, **published())
    with zipfile.ZipFile(path) as old:
        others = {name: old.read(name) for name in old.namelist() if name != "x_train.npy"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in {"x_train.npy": member, **others}.items():
            new.writestr(name, content)
    return path


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    path = with_member(tmp_path / "mine.npz", header((10**9, 10**6, 3)) + bytes(100))
    with pytest.raises(DataError, match=r"\[x_train\]: 3000000000000000 bytes are wanted .* found 100"):
        calib_data.load(f"arrays:{path}")


def test_header_that_is_no_header(tmp_path: Path) -> None:
    path = with_member(tmp_path / "mine.npz", header((4, 2, 2)).replace(b"}", b"{"))
    with pytest.raises(DataError, match=r"mine\.npz: a whole \.npz file is wanted, found:"):
        calib_data.load(f"arrays:{path}")


def test_a_small_file_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    path = with_member(tmp_path / "mine.npz", header((1000, 280, 280)) + bytes(1000 * 280 * 280))
    with pytest.raises(DataError, match=r"\[x_train\]: at most 100 bytes a compressed byte are wanted"):
        calib_data.load(f"arrays:{path}")
