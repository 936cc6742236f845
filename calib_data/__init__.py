"""Data sets for training, calibration and evaluation: one reader a file.

``load("digits")``, ``load("cifar10:DIR")``, ``load("idx:DIR")``, ``load("imagefolder:DIR")`` and
``load("arrays:FILE.npz")``. A reader is a module of this folder with a docstring and
``read(path: str, seed: int) -> Data`` (``path`` is the text after the colon, empty for a set that needs none). Images
are bytes, as a camera gives them; normalisation belongs to the model's spec.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


_FOLDER = Path(__file__).parent


class DataError(ValueError):
    """Data that cannot be used: names the file, what was wanted, what was found and what to do."""


class Part(Protocol):
    """One part of a data set."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], each in 0 … classes − 1."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set in three parts that share no image, and the digest of everything in them."""

    name: str
    train: Part
    calib: Part
    """Held-out images for observing ranges and for decisions (sensitivity, budgets); never the test part."""
    test: Part
    """The whole published test set where there is one."""
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """Channels, height, width."""
    digest: str
    """SHA-256 over images, labels and the split."""
    flip: bool = False
    """Whether a mirrored image keeps its label (true of objects, false of digits and letters)."""


def names() -> dict[str, str]:
    """Reader name -> first line of its docstring; imports no reader."""
    found = {}
    for path in sorted(_FOLDER.glob("[!_]*.py")):
        found[path.stem] = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    return found


def load(name: str, seed: int = 0) -> Data:
    """Load ``reader`` or ``reader:path``. ``seed`` fixes the splits that the set does not come with.

    Raises DataError for an unknown reader (with the nearest spelling) and for files that are not what they should be.
    """
    reader, _, path = name.partition(":")
    if reader not in names():
        near = difflib.get_close_matches(reader, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown data set {reader!r}.{hint} Choices: {', '.join(names())} (reader or reader:PATH)")
    data: Data = importlib.import_module(f"{__name__}.{reader}").read(path, seed)
    return data
