"""MNIST and its kin: train-images-idx3-ubyte and the three files beside it, gzipped or not.

An idx file is two zero bytes, the code of the element type (8: unsigned byte), the number of dimensions, each dimension
as a big-endian 32-bit integer, and the elements row by row (LeCun, Cortes, Burges, "The MNIST database of handwritten
digits", file formats). Images are idx3 (magic number 2051), labels idx1 (2049). Classes have no names here: they are
numbered, and class 0 may be empty, since some of the kin count from 1 (EMNIST Letters).
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._inflation import check_inflation
from edgewise.calib_data._labels import check_classes, check_counts
from edgewise.calib_data._parts import Bytes, MemoryPart, in_memory, without_calib
from edgewise.calib_data._places import check_folder
from edgewise.calib_data._split import Int64s

_UBYTE = 0x08


def read(path: str, seed: int) -> Data:
    """The set in folder ``path``, shape (1, H, W); t10k is the test part, calibration is held out of train.

    Raises DataError for a file that is missing, damaged or not idx, and for counts or sizes that do not agree.
    """
    place = check_folder("idx", path)
    train_images, train_labels = _read_pair(place, "train")
    test_images, test_labels = _read_pair(place, "t10k")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{place}: images of one size are wanted, found {train_images.shape[2:]} in train and "
            f"{test_images.shape[2:]} in t10k (height, width); take both from the same release"
        )
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    check_classes(train_labels, classes, str(place), first=1)
    train, calib = without_calib(train_images, train_labels, seed, str(place))
    names = tuple(str(label) for label in range(classes))
    return in_memory(f"idx:{path}", train, calib, MemoryPart.of(test_images, test_labels), names)


def _read_pair(place: Path, part: str) -> tuple[Bytes, Int64s]:
    images_file, labels_file = _find_file(place, f"{part}-images", 3), _find_file(place, f"{part}-labels", 1)
    images, labels = _read_elements(images_file, 3), _read_elements(labels_file, 1)
    check_counts(len(images), str(images_file), len(labels), str(labels_file))
    return images[:, None], labels.astype(np.int64)


def _find_file(place: Path, stem: str, dimensions: int) -> Path:
    names = [f"{stem}{dot}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for dot in ("-", ".")]
    for name in names:
        if (place / name).is_file():
            return place / name
    present = sorted(path.name for path in place.iterdir())[:8]
    raise DataError(
        f"{place / names[0]}: wanted this file or {', '.join(names[1:])}; the folder holds "
        f"{', '.join(present) or 'nothing'}; put all four files of the set there"
    )


def _read_elements(path: Path, dimensions: int) -> Bytes:
    """The elements of an idx file of unsigned bytes; nothing is allocated before the header is seen to be plausible."""
    try:
        with _open_file(path) as stream:
            shape = _read_header(stream, path, dimensions)
            return _read_body(stream, path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a readable file is wanted, found: {error}; get it again") from error


def _open_file(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_header(stream: io.BufferedIOBase, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, _UBYTE, dimensions])
    head = stream.read(4 + 4 * dimensions)
    if head[:4] != magic:
        raise DataError(
            f"{path}: magic number {int.from_bytes(magic, 'big')} is wanted (bytes, {dimensions} dimensions), "
            f"found {int.from_bytes(head[:4], 'big')}; check that this is the file its name says"
        )
    if len(head) < 4 + 4 * dimensions:
        raise DataError(f"{path}: a header of {4 + 4 * dimensions} bytes is wanted, found {len(head)}; get it again")
    return tuple(int(size) for size in np.frombuffer(head, dtype=">u4", offset=4))


def _read_body(stream: io.BufferedIOBase, path: Path, shape: tuple[int, ...]) -> Bytes:
    expected, on_disk = math.prod(shape), path.stat().st_size
    if not all(shape[1:]):
        raise DataError(f"{path}: images of at least 1×1 are wanted, the header says {shape}; get it again")
    if path.suffix == ".gz":
        check_inflation(expected, on_disk, str(path))
    elif (body := on_disk - 4 - 4 * len(shape)) != expected:
        raise _wrong_size(path, shape, f"{body} bytes")
    elements = np.empty(expected, dtype=np.uint8)
    count_read = 0
    while count_read < expected and (count := stream.readinto(elements[count_read:].data)):
        count_read += count
    if count_read < expected or stream.read(1):
        raise _wrong_size(path, shape, f"only {count_read} bytes" if count_read < expected else "more bytes")
    return elements.reshape(shape)


def _wrong_size(path: Path, shape: tuple[int, ...], actual: str) -> DataError:
    sizes = " × ".join(str(size) for size in shape)
    return DataError(
        f"{path}: {math.prod(shape)} bytes are wanted after the header ({sizes}), found {actual}; get it again"
    )
