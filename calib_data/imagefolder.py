"""A folder of photographs: one folder a class, or a table of labels; in parts train, val, test, calib, or whole.

``imagefolder:DIR?size=224&resize=256&flip=0``: the shorter side is resized to ``resize`` (left out: to ``size``), then
``size`` × ``size`` is cut from the centre (left out: 224); ``interpolation=bicubic`` names another filter than bilinear.
``flip=0`` says that a mirrored image is not the same thing (letters, road signs). ``classes=FILE`` lists the classes in
the order of the network's outputs (``classes.txt`` in DIR is found by itself), ``labels=FILE`` is the table of labels,
``train=0`` keeps nothing for training.

DIR/val serves as the test part where there is no DIR/test; where there are both, calibration images are drawn from val.
DIR/calib, labelled or not, calibrates. Without train, all images judge and calibrate. Without parts the seed holds out a
fifth of each class for testing where every class can spare it; else, and under a table, all images judge and calibrate.

Files are decoded when they are asked for, so that a set may be larger than memory. Images are turned upright by their
EXIF tag and converted to RGB. Every file's header is checked, and every file's bytes digested, when the set is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise.calib_data import Data, DataError
from edgewise.calib_data._class_lists import in_natural_order, list_beside, match_names, order_note, read_list
from edgewise.calib_data._folder_options import Request, complete, parse_request, places_read
from edgewise.calib_data._layouts import Images, find_parts
from edgewise.calib_data._photographs import Options, check_image, decode_image, mute_metadata
from edgewise.calib_data._places import check_folder
from edgewise.calib_data._split import (
    CALIB,
    TEST,
    Int64s,
    calib_count,
    can_spare,
    draw_indices,
    hold_out,
    judged_calib_count,
)

_SHARED_CALIB = 512

__all__ = ["FolderPart", "complete", "places_read", "read"]


@dataclass(frozen=True, eq=False)
class FolderPart:
    """Images that are decoded when they are asked for."""

    files: tuple[Path, ...]
    labels: Tensor
    """int64 [N]; −1: unlabelled."""
    options: Options
    sha256: tuple[str, ...] = field(repr=False)
    """Of each file's bytes, as they were when the set was loaded."""
    sides: tuple[int, ...] = field(default=(), repr=False)
    """Pixels of each file's shorter side."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, 3, size, size]; DataError names one that does not decode."""
        paths = [self.files[position] for position in index.tolist()]
        if not paths:
            return torch.empty((0, 3, self.options.size, self.options.size), dtype=torch.uint8)
        with mute_metadata(), ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
            images = list(pool.map(lambda path: decode_image(path, self.options), paths))
        return torch.from_numpy(np.stack(images))

    def subset(self, index: Int64s) -> FolderPart:
        """The part of the images at ``index``, in that order."""
        positions = index.tolist()
        return FolderPart(
            tuple(self.files[position] for position in positions),
            self.labels[torch.from_numpy(index)],
            self.options,
            tuple(self.sha256[position] for position in positions),
            tuple(self.sides[position] for position in positions),
        )


@dataclass(frozen=True)
class _Parts:
    train: FolderPart
    calib: FolderPart
    test: FolderPart
    notes: tuple[str, ...] = ()


def read(path: str, seed: int) -> Data:
    """The set in folder ``path``, shape (3, size, size).

    Raises DataError for an unknown option, a missing folder, fewer than two classes, a folder or label that means no
    class of the list, images without labels where they are wanted, and a file that is no image or was cut. Other damage
    is named when the image is read.
    """
    request = parse_request(path)
    place = check_folder("imagefolder", request.directory)
    source = request.classes or list_beside(place)
    classes_listed = () if source is None else read_list(source)
    images = find_parts(place, request.labels, classes_listed)
    classes, index, order_note = _number_classes(images, classes_listed, place)
    parts = {name: _make_part(images_found, index, request.options) for name, images_found in images.items()}
    result = (
        _split_whole(parts["whole"], images["whole"], request, seed)
        if "whole" in parts
        else _use_published(place, parts, seed)
    )
    notes = [f"{name}: {note}" for name, images_found in images.items() for note in images_found.notes]
    return Data(
        name=f"imagefolder:{path}",
        train=result.train,
        calib=result.calib,
        test=result.test,
        classes=classes,
        shape=(3, request.options.size, request.options.size),
        digest=_digest(result),
        flip=request.flip,
        notes=(*notes, *order_note, *result.notes, *_lacking_classes(result, classes)),
        cautions=_enlarging(result.test, request),
        prepared=request.prepared,
        options=dataclasses.asdict(request.options) | {"resize": request.options.shorter_side},
        listed=source is not None,
    )


def _number_classes(
    images: Mapping[str, Images], listed: Sequence[str], place: Path
) -> tuple[tuple[str, ...], Mapping[str, int], tuple[str, ...]]:
    """The classes in order, each name's number among them, and what to say about it."""
    order = in_natural_order(name for part in images.values() for name in part.classes)
    if listed:
        mapping = match_names(order, listed, str(place))
        return tuple(listed), mapping.index, (mapping.note,) if mapping.note else ()
    if len(order) < 2:
        raise DataError(
            f"{place}: a folder for each of at least two classes is wanted, found {', '.join(order) or 'none'}; sort the "
            "images into DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS; or put a table of labels (labels.csv: "
            "file,label) or a list of the classes (classes.txt) beside them"
        )
    _check_subset(images, place)
    note = order_note(order)
    return order, {name: number for number, name in enumerate(order)}, (note,) if note else ()


def _check_subset(images: Mapping[str, Images], place: Path) -> None:
    """Where no list says otherwise, the training folders are the classes."""
    classes = set(images["train"].classes) if "train" in images else None
    for part in images.values():
        strange = sorted(set(part.classes) - classes) if classes is not None else []
        if strange:
            raise DataError(
                f"{part.root / strange[0]}: a folder of one of the training classes is wanted; rename or remove it, or "
                f"list all classes in {place / 'classes.txt'}"
            )


def _split_whole(part: FolderPart, images_found: Images, request: Request, seed: int) -> _Parts:
    _check_labelled(part, images_found)
    labels, count = part.labels.numpy(), max(1, len(part) // 5)
    by_folder = request.labels is None and any(path.parent != images_found.root for path in images_found.files)
    # As many as both splits take: a fifth, and a tenth of what is left.
    is_spare = can_spare(labels, count + calib_count(len(labels) - count))
    if not (by_folder and is_spare if request.train is None else request.train):
        return _split_for_judging(part, seed, images_found.root)
    test, rest = hold_out(labels, count, seed, TEST, str(images_found.root))
    aside, remaining = hold_out(labels[rest], calib_count(len(rest)), seed, CALIB, str(images_found.root))
    return _Parts(part.subset(rest[remaining]), part.subset(rest[aside]), part.subset(test))


def _check_labelled(part: FolderPart, images: Images) -> None:
    if bool((part.labels < 0).any()):
        raise DataError(
            f"{images.root}: images with labels are wanted to judge on, found {len(part):,} without; put each class into "
            "a folder of its own, or a table (labels.csv: file,label) beside them. Unlabelled images calibrate in "
            "DIR/calib, beside others"
        )


def _split_for_judging(part: FolderPart, seed: int, root: Path) -> _Parts:
    """All images judge or calibrate, none is trained on."""
    if len(part) < 2:
        raise DataError(f"{root}: at least two images are wanted, one to judge and one to calibrate; found {len(part)}")
    aside, remaining = draw_indices(len(part), judged_calib_count(len(part)), seed, CALIB)
    return _Parts(_none_of(part), part.subset(aside), part.subset(remaining), (_drawn_note(aside, remaining, root),))


def _drawn_note(aside: Int64s, remaining: Int64s, root: Path) -> str:
    return f"{root.name}: {len(aside):,} images drawn for calibration, {len(remaining):,} left to judge on, none to train on"


def _none_of(part: FolderPart) -> FolderPart:
    return part.subset(np.empty(0, dtype=np.int64))


def _use_published(place: Path, parts: Mapping[str, FolderPart], seed: int) -> _Parts:
    test = parts.get("test", parts.get("val"))
    if test is None or not len(test):
        raise DataError(
            f"{place / 'test'}: a folder of test images is wanted beside train (test or val), found none; add "
            "it, or move the folders of the classes one level up to have a fifth held out"
        )
    train, calib = parts.get("train"), parts.get("calib")
    if calib is not None and len(calib):
        return _Parts(_none_of(test) if train is None else train, calib, test)
    if "test" in parts and len(parts.get("val", ())):
        source = parts["val"]
        count = calib_count(len(source)) if train is not None else min(len(source), 1000)
        aside, _ = draw_indices(len(source), count, seed, CALIB)
        return _Parts(_none_of(test) if train is None else train, source.subset(aside), test)
    if train is None or not len(train):
        return _split_for_judging(test, seed, place)
    return _calibrated_by(train, test, seed, place)


def _calibrated_by(train: FolderPart, test: FolderPart, seed: int, place: Path) -> _Parts:
    labels, count = train.labels.numpy(), calib_count(len(train))
    if can_spare(labels, count):
        aside, remaining = hold_out(labels, count, seed, CALIB, str(place))
        return _Parts(train.subset(remaining), train.subset(aside), test)
    count = max(count, min(_SHARED_CALIB, len(train)))  # it takes nothing away from training
    aside, _ = draw_indices(len(train), count, seed, CALIB)
    note = f"the {count:,} calibration images are training images too: their classes have none to spare"
    return _Parts(train, train.subset(aside), test, (note,))


def _lacking_classes(parts: _Parts, classes: Sequence[str]) -> list[str]:
    """Which parts have no image of some classes."""
    notes = []
    for name, part in (("train", parts.train), ("test", parts.test)):
        present = len(set(part.labels.tolist()))
        if 0 < present < len(classes):
            notes.append(f"{name}: {len(part):,} images of {present:,} of the {len(classes):,} classes")
    if bool((parts.calib.labels < 0).any()):
        notes.append(f"calib: {len(parts.calib):,} images without labels")
    return notes


def _make_part(images: Images, index: Mapping[str, int], options: Options) -> FolderPart:
    if not images.files and images.notes:
        raise DataError(f"{images.root}: images are wanted, found none ({'; '.join(images.notes)}); add some")
    labels = [-1 if name is None else index[name] for name in images.names]
    order = sorted(range(len(labels)), key=labels.__getitem__)  # by class, then by path, as the files come
    files = tuple(images.files[place] for place in order)
    checked = _check_images(files)
    return FolderPart(
        files,
        torch.tensor([labels[place] for place in order], dtype=torch.int64),
        options,
        tuple(digest for digest, _ in checked),
        tuple(side for _, side in checked),
    )


def _check_images(files: Sequence[Path]) -> list[tuple[str, int]]:
    """Each file's SHA-256 and shorter side; DataError tells of the first that is no image, and names the others."""
    checked, errors = [], list[DataError]()
    names = list[str]()
    for path in files:
        try:
            checked.append(check_image(path))
        except DataError as error:
            errors.append(error)
            names.append(path.name)
    if errors:
        others = f"; and {len(names) - 1:,} more: {', '.join(names[1:5])}" if len(names) > 1 else ""
        raise DataError(f"{errors[0]}{others}{', …' if len(names) > 5 else ''}") from errors[0]
    return checked


def _enlarging(part: FolderPart, request: Request) -> tuple[str, ...]:
    """That images are much smaller than they are fed, where nobody asked for the size."""
    usual, fed = int(np.median(part.sides)), request.options.shorter_side
    if request.prepared["size"].origin != "default" or usual * _MUCH > fed:
        return ()
    return (
        f"the images are small, {usual} pixels at their shorter side, and are enlarged to {fed}, which nobody asked for: a network "
        f"trained on them as they are answers worse, and slower. Say input_shape = (3, {usual}, {usual}) in the network's file, "
        f"or --data '…?size={usual}'; ?size={fed} if it is meant",
    )


_MUCH = 2
"""Times from which on images count as enlarged."""


def _digest(parts: _Parts) -> str:
    options = parts.test.options
    text = f"size {options.size} resize {options.shorter_side}"
    text += "" if options.interpolation == Options.interpolation else f" {options.interpolation}"
    sha = hashlib.sha256(f"{text}\n".encode())
    for name, part in (("train", parts.train), ("calib", parts.calib), ("test", parts.test)):
        sha.update(f"{name} {len(part)}\n".encode())
        for file_sha256, label in zip(part.sha256, part.labels.tolist(), strict=True):
            sha.update(f"{file_sha256} {label}\n".encode())
    return sha.hexdigest()
