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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


_FOLDER = Path(__file__).parent


class DataError(ValueError):
    """Data that cannot be used: names the file, what was wanted, what was found and what to do."""


class Part(Protocol):
    """One part of a data set."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], each in 0 … classes − 1; −1 throughout where the part is unlabelled, which only ``calib`` may be."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""


@dataclass(frozen=True)
class Stated:
    """A setting of how images are prepared, and where it was said."""

    value: str
    origin: str
    """``default`` where nobody said it."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set in three parts, and the digest of everything in them.

    They share no image, but where ``notes`` say that calibration images are training images too. ``test`` and ``calib``
    need not have images of every class; ``train`` may lack classes, or be empty, where nothing is to be trained.
    """

    name: str
    train: Part
    calib: Part
    """Images for observing ranges and for decisions (sensitivity, budgets); never the test part."""
    test: Part
    """The whole published test set where there is one."""
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """Channels, height, width."""
    digest: str
    """SHA-256 over images, labels and the split."""
    flip: bool = False
    """Whether a mirrored image keeps its label (true of objects, false of digits and letters)."""
    notes: tuple[str, ...] = ()
    """What a person should hear of the images: what was left out, is empty or is lacking; one sentence each."""
    cautions: tuple[str, ...] = ()
    """What may make every figure worse than it need be, and what to do; one sentence each."""
    prepared: Mapping[str, Stated] = field(default_factory=dict)
    """How images become what ``shape`` says, setting by setting; empty where they are taken as they are."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The same as options of the set's reader, for ``with_options``: what a written file's card repeats."""
    listed: bool = False
    """Whether the classes are a list that somebody gave, and not just the names that were found."""

    def untrainable(self) -> str:
        """Why nothing can be trained on these images, in words that follow the set's name; empty where it can be."""
        present = set(self.train.labels.tolist())
        lacking = [name for index, name in enumerate(self.classes) if index not in present]
        if not present:
            return "has no training images"
        if not lacking:
            return ""
        listing = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4:,} more" if len(lacking) > 4 else "")
        return f"has no training image of {len(lacking):,} of its {len(self.classes):,} classes ({listing})"

    @property
    def calib_is_labelled(self) -> bool:
        """Whether the calibration images have labels, so that decisions about accuracy can be made on them."""
        return bool((self.calib.labels >= 0).all())


def names() -> dict[str, str]:
    """Reader name -> first line of its docstring; imports no reader."""
    names_by_kind = {}
    for path in sorted(_FOLDER.glob("[!_]*.py")):
        names_by_kind[path.stem] = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    return names_by_kind


def with_options(name: str, options: Mapping[str, object]) -> tuple[str, frozenset[str]]:
    """``reader:PATH`` with those of ``options`` (size, resize, …) that its reader takes and the name does not say.

    Returns the name and the options that were added. Raises DataError as ``load`` for an unknown reader.
    """
    reader = name.partition(":")[0]
    complete = getattr(_import_reader(reader), "complete", None)
    if complete is None:
        return name, frozenset()
    request: tuple[str, frozenset[str]] = complete(name, options)
    return request


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names that a list (.txt or .json) holds, in its order. Raises DataError for what is no such list."""
    classes: tuple[str, ...] = importlib.import_module(f"{__name__}._class_lists").read_list(path)
    return classes


def named_as(data: Data, classes: Sequence[str]) -> Data:
    """``data`` with its images labelled by the places of their classes' names in ``classes``.

    Names are compared as in a class list: by WordNet id, by one of an entry's names, or by number. Raises DataError for a
    class with images that ``classes`` do not have.
    """
    module = importlib.import_module(f"{__name__}._relabelled")
    new_data: Data = module.renumber(data, classes)
    return new_data


def load(name: str, seed: int = 0) -> Data:
    """Load ``reader`` or ``reader:path``. ``seed`` fixes the splits that the set does not come with.

    Raises DataError for an unknown reader (with the nearest spelling) and for files that are not what they should be.
    """
    reader, _, path = name.partition(":")
    data: Data = _import_reader(reader).read(path, seed)
    return data


def places_read(name: str) -> tuple[Path, ...]:
    """The files and folders that ``load(name)`` reads, or looks for; none for a set that a package brings.

    Raises DataError as ``load`` for an unknown reader.
    """
    reader, _, path = name.partition(":")
    own = getattr(_import_reader(reader), "places_read", None)
    if own is not None:
        places: tuple[Path, ...] = own(path)
        return places
    return (Path(path).expanduser(),) if path else ()


def check_name(name: str) -> None:
    """Raise DataError, with the nearest spelling, where ``name`` begins with no reader's."""
    reader = name.partition(":")[0]
    if reader not in names():
        near = difflib.get_close_matches(reader, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown data set {reader!r}.{hint} Choices: {', '.join(names())} (reader or reader:PATH)")


def _import_reader(reader: str) -> Any:
    check_name(reader)
    return importlib.import_module(f"{__name__}.{reader}")
