"""A part of a data set that is held in memory, and the data set made of three such parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.calib_data import Data
from edgewise.calib_data._split import CALIB, Int64s, calib_count, hold_out

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class MemoryPart:
    """Images and labels held as tensors."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""

    @classmethod
    def of(cls, images: Bytes, labels: Int64s) -> MemoryPart:
        """The part of arrays uint8 [N, C, H, W] and int64 [N]; shares their memory where they are contiguous."""
        assert images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(labels), (images.shape, len(labels))
        return cls(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(labels)))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""
        return self.images[index]


def parts_digest(train: MemoryPart, calib: MemoryPart, test: MemoryPart) -> str:
    """SHA-256, in hex, over every part's shape, images and labels in their order: the same on every platform."""
    sha = hashlib.sha256()
    for name, part in (("train", train), ("calib", calib), ("test", test)):
        sha.update(f"{name} {tuple(part.images.shape)}\n".encode())
        sha.update(part.images.numpy().data)
        sha.update(part.labels.numpy().astype("<i8").data)
    return sha.hexdigest()


def in_memory(
    name: str, train: MemoryPart, calib: MemoryPart, test: MemoryPart, classes: tuple[str, ...], flip: bool = False
) -> Data:
    """The data set of three parts whose images have one shape."""
    channels, height, width = train.images.shape[1:]
    return Data(
        name=name,
        train=train,
        calib=calib,
        test=test,
        classes=classes,
        shape=(channels, height, width),
        digest=parts_digest(train, calib, test),
        flip=flip,
    )


def without_calib(images: Bytes, labels: Int64s, seed: int, source: str) -> tuple[MemoryPart, MemoryPart]:
    """Training and calibration parts of a published training set; no image is in both.

    Raises DataError, naming ``source``, for a set too small to be split.
    """
    aside, remaining = hold_out(labels, calib_count(len(labels)), seed, CALIB, source)
    return MemoryPart.of(images[remaining], labels[remaining]), MemoryPart.of(images[aside], labels[aside])
