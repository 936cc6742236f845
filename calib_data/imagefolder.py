"""A folder of photographs, one folder a class: DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS alone.

``imagefolder:DIR?size=224&resize=256&flip=0``: the shorter side is resized to ``resize`` (left out: to ``size``), then
``size`` × ``size`` is cut from the centre (left out: 224). ``flip=0`` says that a mirrored image is not the same thing
(letters, road signs). DIR/val serves as the test part where there is no DIR/test; where there are both, calibration
images are drawn from val. Without a train folder the seed holds out a fifth of each class for testing.

Files are decoded when they are asked for, so that a set may be larger than memory. Images are turned upright by their
EXIF tag and converted to RGB. Every file's header is checked, and every file's bytes digested, when the set is loaded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._labels import check_classes
from edgewise.calib_data._photographs import Options, checked_sha256, decode, mute_metadata
from edgewise.calib_data._places import folder
from edgewise.calib_data._split import CALIB, TEST, Int64s, calib_count, hold_out

_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_TESTS = ("test", "val")
_LARGEST_SIDE = 4096


@dataclass(frozen=True, eq=False)
class FolderPart:
    """Images that are decoded when they are asked for."""

    files: tuple[Path, ...]
    labels: Tensor
    """int64 [N]."""
    options: Options
    sha256: tuple[str, ...] = field(repr=False)
    """Of each file's bytes, as they were when the set was loaded."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, 3, size, size]; DataError names one that does not decode."""
        chosen = [self.files[position] for position in index.tolist()]
        if not chosen:
            return torch.empty((0, 3, self.options.size, self.options.size), dtype=torch.uint8)
        with mute_metadata(), ThreadPoolExecutor(min(len(chosen), os.cpu_count() or 1)) as pool:
            images = list(pool.map(lambda path: decode(path, self.options), chosen))
        return torch.from_numpy(np.stack(images))

    def subset(self, index: Int64s) -> FolderPart:
        """The part of the images at ``index``, in that order."""
        chosen = index.tolist()
        return FolderPart(
            tuple(self.files[position] for position in chosen),
            self.labels[torch.from_numpy(index)],
            self.options,
            tuple(self.sha256[position] for position in chosen),
        )


def read(path: str, seed: int) -> Data:
    """The set in folder ``path``, shape (3, size, size).

    Raises DataError for an unknown option, a missing folder, fewer than two classes, a class without images or with
    too few to be split, and for a file that is no image. A cut file is named when it is read.
    """
    directory, options = _options(path)
    place = folder("imagefolder", directory)
    whole = not _class_folders(place / "train")
    root = place if whole else place / "train"
    classes = tuple(found.name for found in _class_folders(root))
    if len(classes) < 2:
        raise DataError(
            f"{root}: a folder for each of at least two classes is wanted, found {', '.join(classes) or 'none'}; "
            "sort the images into DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS"
        )
    train = _part(root, classes, options)
    check_classes(train.labels.numpy(), len(classes), str(root))
    train, calib, test = _split_whole(train, seed, root) if whole else _published(place, train, classes, seed)
    return Data(
        name=f"imagefolder:{path}",
        train=train,
        calib=calib,
        test=test,
        classes=classes,
        shape=(3, options.size, options.size),
        digest=_digest(train, calib, test),
        flip=bool(options.flip),
    )


def _options(path: str) -> tuple[str, Options]:
    match = re.fullmatch(r"(?P<directory>.*?)(?:\?(?P<options>[^?/]*=[^?/]*))?", path, flags=re.DOTALL)
    assert match is not None
    given: dict[str, int] = {}
    for item in filter(None, (match["options"] or "").split("&")):
        name, _, value = item.partition("=")
        low, high = (0, 1) if name == "flip" else (1, _LARGEST_SIDE)
        if name not in Options.__dataclass_fields__:
            raise DataError(f"imagefolder: the options size, resize and flip are known, found {name!r}; correct it")
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise DataError(f"imagefolder: {name} as a whole number in {low} … {high} is wanted, found {value!r}")
        given[name] = int(value)
    options = Options(**given)
    if options.shorter_side < options.size:
        raise DataError(
            f"imagefolder: resize of at least size is wanted, found {options.resize} and {options.size}; the cut of "
            "size × size would not fit"
        )
    return match["directory"], options


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    folders = [found for found in root.iterdir() if found.is_dir() and not found.name.startswith(".")]
    return sorted(folders, key=lambda found: found.name)


def _split_whole(images: FolderPart, seed: int, root: Path) -> tuple[FolderPart, FolderPart, FolderPart]:
    labels = images.labels.numpy()
    test, rest = hold_out(labels, max(1, len(labels) // 5), seed, TEST, str(root))
    held, kept = hold_out(labels[rest], calib_count(len(rest)), seed, CALIB, str(root))
    return images.subset(rest[kept]), images.subset(rest[held]), images.subset(test)


def _published(
    place: Path, train: FolderPart, classes: Sequence[str], seed: int
) -> tuple[FolderPart, FolderPart, FolderPart]:
    found = [name for name in _TESTS if _class_folders(place / name)]
    if not found:
        raise DataError(
            f"{place / _TESTS[0]}: a folder of test images is wanted beside train (test or val), found none; add "
            "it, or move the folders of the classes one level up to have a fifth held out"
        )
    test, *other = [_part(place / name, classes, train.options) for name in found]
    source = other[0] if other else train
    held, kept = hold_out(source.labels.numpy(), calib_count(len(source)), seed, CALIB, str(place))
    return (train if other else train.subset(kept)), source.subset(held), test


def _part(root: Path, classes: Sequence[str], options: Options) -> FolderPart:
    files: list[Path] = []
    labels: list[int] = []
    for found in _class_folders(root):
        if found.name not in classes:
            raise DataError(f"{found}: a folder of one of the training classes is wanted; rename or remove it")
        images = [path for path in found.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file()]
        if not images:
            raise DataError(
                f"{found}: images ({', '.join(sorted(_SUFFIXES))}) are wanted directly in the folder of their class, "
                "found none; add some, or remove the folder"
            )
        images.sort(key=lambda path: path.name)
        files += images
        labels += [classes.index(found.name)] * len(images)
    sums = tuple(checked_sha256(path) for path in files)
    return FolderPart(tuple(files), torch.tensor(labels, dtype=torch.int64), options, sums)


def _digest(train: FolderPart, calib: FolderPart, test: FolderPart) -> str:
    sha = hashlib.sha256(f"size {train.options.size} resize {train.options.shorter_side}\n".encode())
    for name, part in (("train", train), ("calib", calib), ("test", test)):
        sha.update(f"{name} {len(part)}\n".encode())
        for file_sha256, label in zip(part.sha256, part.labels.tolist(), strict=True):
            sha.update(f"{file_sha256} {label}\n".encode())
    return sha.hexdigest()
