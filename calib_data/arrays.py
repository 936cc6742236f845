"""Images and labels of one's own in a file of NumPy arrays (.npz).

The file holds ``x_train, y_train, x_test, y_test`` (and ``x_calib, y_calib`` if wanted), or ``images, labels``, of
which a fifth are then held out for testing; where the file has no calibration part, a tenth of the training images, at
most 1,000, are held out for it. Images are uint8 as [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels;
floats in 0 … 1 are scaled to bytes and rounded. Labels are integers [N] or [N, 1] from 0. ``classes``, an array of
names, is optional. Images are not taken for mirrorable: nothing here says that they are.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._inflation import check_inflation
from edgewise.calib_data._labels import check_classes, check_counts, check_range
from edgewise.calib_data._parts import Bytes, MemoryPart, in_memory, without_calib
from edgewise.calib_data._places import check_file
from edgewise.calib_data._split import TEST, Int64s, hold_out

_PUBLISHED = ("x_train", "y_train", "x_test", "y_test")
_CALIB = ("x_calib", "y_calib")
_WHOLE = ("images", "labels")
_CLASSES = "classes"
_CHANNELS = (1, 3)
_CHUNK = 1024
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    # numpy parses an array's header as Python text.
    SyntaxError,
    tokenize.TokenError,
)
"""What zipfile, zlib and numpy raise on a damaged file."""

Arrays = Mapping[str, NDArray[Any]]
Part = tuple[Bytes, Int64s]


def read(path: str, seed: int) -> Data:
    """The set in the file ``path``; the shape is that of its images.

    Raises DataError, naming the file and the array, for a damaged file, a missing array, a wrong type or shape, object
    arrays (nothing is unpickled), counts that do not agree and labels out of range.
    """
    place = check_file("arrays", path, ".npz")
    arrays = _read_arrays(place)
    pairs = _pair_names(arrays)
    parts = {part: _make_part(arrays, *pair, place) for part, pair in pairs.items()}
    _check_shapes({pairs[part][0]: images for part, (images, _) in parts.items()}, place)
    classes = _class_names(arrays, [labels for _, labels in parts.values()], place)
    for part, (_, labels) in parts.items():
        check_range(labels, len(classes), _member_name(place, pairs[part][1]))
    if "whole" in parts:
        parts = _test_apart(*parts["whole"], seed, place)
    check_classes(parts["train"][1], len(classes), str(place))
    if "calib" in parts:
        train, calib = MemoryPart.of(*parts["train"]), MemoryPart.of(*parts["calib"])
    else:
        train, calib = without_calib(*parts["train"], seed, str(place))
    return in_memory(f"arrays:{path}", train, calib, MemoryPart.of(*parts["test"]), classes)


def _member_name(place: Path, name: str) -> str:
    return f"{place}[{name}]"


def _read_arrays(place: Path) -> Arrays:
    """The arrays of the file that mean something here; each header is checked against the member's size first."""
    try:
        with zipfile.ZipFile(place) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = _wanted_members(list(members), place)
            for name in names:
                _check_member(archive, members[name], name, place)
        with np.load(place, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{place}: a whole .npz file is wanted, found: {error}; write it again with numpy.savez"
        ) from error


def _wanted_members(present: list[str], place: Path) -> list[str]:
    for names in (_WHOLE, _PUBLISHED):
        if set(names) <= set(present):
            calib = _CALIB if names is _PUBLISHED and set(_CALIB) & set(present) else ()
            if not set(calib) <= set(present):
                raise DataError(f"{place}: both {' and '.join(_CALIB)} are wanted, found one; add the other")
            return [*names, *calib, *([_CLASSES] if _CLASSES in present else [])]
    raise DataError(
        f"{place}: the arrays {', '.join(_PUBLISHED)}, or {' and '.join(_WHOLE)}, are wanted, found "
        f"{', '.join(present) or 'none'}; save them under these names"
    )


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, place: Path) -> None:
    where = _member_name(place, name)
    check_inflation(info.file_size, min(info.compress_size, place.stat().st_size), where)
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{where}: an array of numbers is wanted, found npy version {version}; save it as numbers")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{where}: an array of numbers or names is wanted, found Python objects, which are never unpickled; "
                "save it with a dtype (uint8 images, int64 labels, str names)"
            )
        expected, actual = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
        if expected != actual:
            raise DataError(
                f"{where}: {expected} bytes are wanted for {shape} of {dtype}, found {actual}; write the file again"
            )


def _pair_names(arrays: Arrays) -> dict[str, tuple[str, str]]:
    """Part -> the names of its images and labels."""
    if _WHOLE[0] in arrays:
        return {"whole": _WHOLE}
    return {part: (f"x_{part}", f"y_{part}") for part in ("train", "calib", "test") if f"x_{part}" in arrays}


def _make_part(arrays: Arrays, images_name: str, labels_name: str, place: Path) -> Part:
    images = _check_images(arrays[images_name], _member_name(place, images_name))
    labels = _labels(arrays[labels_name], _member_name(place, labels_name))
    check_counts(len(images), _member_name(place, images_name), len(labels), _member_name(place, labels_name))
    return images, labels


def _check_images(array: NDArray[Any], where: str) -> Bytes:
    """The images as uint8 [N, C, H, W]."""
    if 0 in array.shape:
        raise DataError(f"{where}: images are wanted, found an empty array {array.shape}; add some")
    if array.ndim == 3:
        return _to_bytes(array, where)[:, None]
    first = array.ndim == 4 and array.shape[1] in _CHANNELS
    last = array.ndim == 4 and array.shape[3] in _CHANNELS
    if first == last:
        shape = f"{array.shape}, which can be read both ways" if first else f"{array.shape}"
        raise DataError(
            f"{where}: images [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3 are wanted, found {shape}; "
            "transpose or reshape them"
        )
    return _to_bytes(array if first else array.transpose(0, 3, 1, 2), where)


def _to_bytes(array: NDArray[Any], where: str) -> Bytes:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{where}: uint8, or floats in 0 … 1, are wanted, found {array.dtype}; convert the images")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{where}: floats in 0 … 1 are wanted, found {low:g} … {high:g}; give images as they are before "
            "normalisation, best as uint8"
        )
    images = np.empty(array.shape, dtype=np.uint8)
    for start in range(0, len(array), _CHUNK):  # a copy of the whole as floats could be four times the set
        images[start : start + _CHUNK] = np.rint(array[start : start + _CHUNK].astype(np.float64) * 255)
    return images


def _labels(array: NDArray[Any], where: str) -> Int64s:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{where}: integer labels are wanted, found {array.dtype}; convert them")
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise DataError(
            f"{where}: labels [N] or [N, 1] are wanted, found {array.shape}; from one-hot rows, take argmax(axis=1)"
        )
    return array.reshape(-1).astype(np.int64)


def _check_shapes(images: Mapping[str, Bytes], place: Path) -> None:
    shapes = {name: array.shape[1:] for name, array in images.items()}
    if len(set(shapes.values())) > 1:
        shapes_text = ", ".join(f"{shape} in {name}" for name, shape in shapes.items())
        raise DataError(f"{place}: images of one shape (C, H, W) are wanted, found {shapes_text}; make them alike")


def _class_names(arrays: Arrays, labels: Sequence[Int64s], place: Path) -> tuple[str, ...]:
    if _CLASSES not in arrays:
        count, images = max(int(part.max()) for part in labels) + 1, sum(len(part) for part in labels)
        if count > images:  # before a name is made for each of a billion classes
            raise DataError(f"{place}: labels below {images}, the number of images, are wanted, found {count - 1}")
        return tuple(str(label) for label in range(count))
    names = arrays[_CLASSES]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{_member_name(place, _CLASSES)}: a list of names is wanted, found {names.dtype} {names.shape}; "
            "save numpy.array([...names...])"
        )
    return tuple(str(name) for name in names)


def _test_apart(images: Bytes, labels: Int64s, seed: int, place: Path) -> dict[str, Part]:
    aside, remaining = hold_out(labels, max(1, len(labels) // 5), seed, TEST, str(place))
    return {"train": (images[remaining], labels[remaining]), "test": (images[aside], labels[aside])}
