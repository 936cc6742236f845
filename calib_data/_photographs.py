"""One photograph: its header checked, and later decoded, turned upright, resized and cut to a square."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from edgewise.calib_data import DataError
from edgewise.calib_data._parts import Bytes

if TYPE_CHECKING:
    from PIL.Image import Image


Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an image is prepared."""

    size: int = 224
    """Side of the square that is cut out, pixels."""
    resize: int = 0
    """Length of the shorter side before the cut, pixels; 0: as ``size``."""
    interpolation: Interpolation = "bilinear"
    """Pillow's filter, antialiased where it shrinks."""

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after resizing."""
        return self.resize or self.size


@contextlib.contextmanager
def mute_metadata() -> Iterator[None]:
    """Mute Pillow's warnings of odd metadata, which change no pixel; raise its warning of an absurdly large image."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


_LARGEST = 2**30
"""Bytes of an image's file: many times what the most pixels take that are decoded."""


def check_image(path: Path) -> tuple[str, int]:
    """The file's SHA-256, and the pixels of its shorter side.

    Raises DataError if its header is not that of an image of at most 8 bits a channel, or if the file was cut.
    """
    from PIL import Image

    try:
        with path.open("rb") as stream, mute_metadata():
            if (size := path.stat().st_size) > _LARGEST:  # sparse, it would be read for hours
                raise ValueError(f"a file of {size:,} bytes, more than any image has that is read here")
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            ended = _has_its_end(stream)
            stream.seek(0)
            with Image.open(stream) as image:
                mode, side = image.mode, min(image.size)
                if not ended(image.format):
                    image.load()  # only a decoder can tell whether anything is missing
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        condition = "an empty file" if not path.stat().st_size else re.sub(r" <_io\..*>", "", str(error))
        raise DataError(f"{path}: an image is wanted, found: {condition}; replace or remove it") from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{path}: an image of 8 bits a channel is wanted, found mode {mode}; convert it")
    return sha256, side


_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""Format -> what stands at the end of a whole file, which a camera or a program may have written something behind."""
_TAIL = 2**16
"""Bytes in which it is looked for."""


def _has_its_end(stream: BinaryIO) -> Callable[[str | None], bool]:
    """Whether the file ends as one of a format does, by the format; True for formats without such a mark."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    tail = stream.read()
    return lambda kind: _ENDS.get(kind or "", b"") in tail


def decode_image(path: Path, options: Options) -> Bytes:
    """The image as uint8 [3, size, size]; raises DataError, naming the file, if it does not decode."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            # By way of RGBA, because Pillow warns of a palette's transparency on the direct way.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            return np.asarray(_cut_square(opaque.convert("RGB"), options)).transpose(2, 0, 1)
    except (
        OSError,
        ValueError,
        SyntaxError,
        IndexError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path}: an image that decodes is wanted, found: {error}; replace or remove it") from error


def _cut_square(image: Image, options: Options) -> Image:
    """The centre of the resized image; only that square is resized, since a panorama's whole could be gigabytes."""
    from PIL.Image import Resampling

    left, right = _cut_span(image.width, min(image.size), options)
    top, bottom = _cut_span(image.height, min(image.size), options)
    resampling = Resampling[options.interpolation.upper()]
    return image.resize((options.size, options.size), resampling, box=(left, top, right, bottom))


def _cut_span(side: int, shorter: int, options: Options) -> tuple[float, float]:
    """Where the cut begins and ends on a side, in pixels of the image as it came."""
    resized = max(options.size, round(side * options.shorter_side / shorter))
    start = (resized - options.size) // 2
    return start * side / resized, (start + options.size) * side / resized
