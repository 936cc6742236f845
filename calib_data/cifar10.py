"""CIFAR-10 in its binary layout: data_batch_1.bin … data_batch_5.bin and test_batch.bin.

A record is one label byte and 3 × 1,024 bytes, the red, green and blue planes of a 32×32 image row by row; a file is
10,000 records (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version"). The published test images are the test
part, in file order; 1,000 images, 100 a class, are held out of the training images for calibration.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._labels import check_classes, check_range
from edgewise.calib_data._parts import Bytes, MemoryPart, in_memory, without_calib
from edgewise.calib_data._places import check_folder
from edgewise.calib_data._split import Int64s

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_RECORDS = 10_000
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_META = "batches.meta.txt"
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_INSIDE = "cifar-10-batches-bin"
_REPAIR = "unpack cifar-10-binary.tar.gz again"


def read(path: str, seed: int) -> Data:
    """The set in folder ``path``, or in its ``cifar-10-batches-bin``; shape (3, 32, 32).

    Raises DataError for a missing, cut or overlong file, and for labels above 9.
    """
    place = check_folder("cifar10", path)
    if (place / _INSIDE).is_dir():
        place = place / _INSIDE
    for name in (*_TRAIN, _TEST):
        _check_size(place / name)
    classes = _class_names(place / _META)
    records = np.concatenate([_read_records(place / name) for name in _TRAIN])
    images, labels = _split_records(records)
    check_classes(labels, len(classes), str(place))
    train, calib = without_calib(images, labels, seed, str(place))
    test = MemoryPart.of(*_split_records(_read_records(place / _TEST)))
    return in_memory(f"cifar10:{path}", train, calib, test, classes, flip=True)


def _check_size(path: Path) -> None:
    if not path.is_file():
        python = path.with_suffix("").is_file()
        hint = "the folder holds the Python version; get cifar-10-binary.tar.gz and unpack that" if python else _REPAIR
        raise DataError(f"{path}: a file of the binary layout of CIFAR-10 is wanted, found none; {hint}")
    whole, over = divmod(path.stat().st_size, _RECORD)
    if over or whole != _RECORDS:
        part = f" and {over} bytes of another" if over else ""
        raise DataError(
            f"{path}: {_RECORDS} records of {_RECORD} bytes are wanted, found {whole} whole ones{part}; {_REPAIR}"
        )


def _read_records(path: Path) -> Bytes:
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD)
    check_range(records[:, 0].astype(np.int64), len(_CLASSES), str(path))
    return records


def _split_records(records: Bytes) -> tuple[Bytes, Int64s]:
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0].astype(np.int64)


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return _CLASSES
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != len(_CLASSES):
        raise DataError(f"{path}: {len(_CLASSES)} class names are wanted, found {len(names)}; {_REPAIR}, or remove it")
    return names
