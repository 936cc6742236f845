"""A table of labels beside images: one row an image, with its label, a column for each class, or nothing more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.calib_data import DataError
from edgewise.calib_data._table_files import read_rows

_COLUMNS = (
    "label", "labels", "class", "class_name", "classname", "category", "target", "wnid", "synset", "name",
    "predictionstring", "class_id", "class_index", "label_id", "y", "breed", "species", "id_code",
)  # fmt: skip
_NUMBER = re.compile(r"-?[\d.]*")
_ID = re.compile(r"n\d{8}(?=\s+\d)")
"""A WordNet id with a box behind it, as ImageNet's own tables have them."""


class StrangerError(DataError):
    """A table that names none of the images."""


@dataclass(frozen=True)
class Table:
    """What a table says of the images that lie beside it."""

    labels: Mapping[Path, str | None]
    """Image -> its label, as it is written; None: the table is a list of images and says none."""
    missing: tuple[str, ...]
    """Images that the table names and that are not there."""


def read_table(path: Path, images: Sequence[Path]) -> Table:
    """The labels in ``path`` of those of ``images`` that it names by path, by name, or by name without suffix.

    The column of files is the one that names most of them; that of labels is called so (label, class, category, wnid …),
    or is the only other one, or there is a column of zeros and ones for each class. Raises DataError where there are none
    such, and for an image with two labels.
    """
    rows = read_rows(path)
    names = _Names(images, path.parent)
    column = _file_column(rows, names, path)
    header = rows[0] if names.find(rows[0][column]) is None else None
    body = rows if header is None else rows[1:]
    texts = _labels_of(body, header, column, path)
    labels: dict[Path, str | None] = {}
    missing = []
    for row, text in zip(body, texts, strict=True):
        image = names.find(row[column])
        if image is None:
            missing.append(row[column])
        elif labels.setdefault(image, text) != text:
            raise DataError(f"{path}: one label an image is wanted, {row[column]} has {labels[image]!r} and {text!r}")
    return Table(labels, tuple(missing))


def _labels_of(
    rows: Sequence[Sequence[str]], header: Sequence[str] | None, files: int, path: Path
) -> Sequence[str | None]:
    """Each row's label."""
    if not rows or len(rows[0]) == 1:
        return [None] * len(rows)
    columns = [column for column in range(len(rows[0])) if column != files]
    label = _label_column(rows, header, columns)
    if label is not None:
        return [_label(row[label]) for row in rows]
    marked = None if header is None else _marked_classes(rows, header, columns)
    if marked is None:
        names = ", ".join(rows[0] if header is None else header)
        raise DataError(
            f"{path}: a column called label or class, or one of zeros and a single one for each class, is wanted, found "
            f"{names}; name it so in the first row"
        )
    return marked


def _marked_classes(
    rows: Sequence[Sequence[str]], header: Sequence[str], columns: Sequence[int]
) -> list[str | None] | None:
    """The class that a single one among zeros marks in each row; None where the columns are of another kind."""
    try:
        marks = [[float(row[column]) for column in columns] for row in rows]
    except ValueError:
        return None
    if not all(sorted(row) == [0.0] * (len(columns) - 1) + [1.0] for row in marks):
        return None
    return [header[columns[row.index(1.0)]] for row in marks]


class _Names:
    """Every way to name an image: its path from the table, its class's folder and name, its name; with a suffix or none."""

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self._images: dict[str, Path | None] = {}
        for image in images:
            inside = image.relative_to(root) if image.is_relative_to(root) else image
            for path in {inside, image, Path(image.parent.name, image.name), Path(image.name)}:
                for name in (path.as_posix(), path.with_suffix("").as_posix()):
                    self._images[name] = None if self._images.get(name, image) != image else image

    def find(self, cell: str) -> Path | None:
        """The one image that ``cell`` names: as it is written, else by what its path, on another machine, ends with."""
        parts = cell.replace("\\", "/").removeprefix("./").split("/")
        names = (cell, "/".join(parts), "/".join(parts[-2:]), parts[-1])
        return next((image for name in names if (image := self._images.get(name)) is not None), None)

    def __len__(self) -> int:
        """How many images go by some name of their own."""
        return len(set(self._images.values()) - {None})


def _file_column(rows: Sequence[Sequence[str]], images: _Names, path: Path) -> int:
    hits = [len({images.find(row[column]) for row in rows} - {None}) for column in range(len(rows[0]))]
    if not max(hits):
        raise StrangerError(
            f"{path}: a column with the names of the {len(images):,} images beside it is wanted, found "
            f"{', '.join(rows[0])}, none of which names one; correct the names, or put the images there"
        )
    return hits.index(max(hits))


def _label_column(rows: Sequence[Sequence[str]], header: Sequence[str] | None, columns: Sequence[int]) -> int | None:
    """The column that is called as labels are, the only one, or the only one of words where no header says what is what."""
    if len(columns) == 1:
        return columns[0]
    if header is None:
        words = [column for column in columns if not all(_NUMBER.fullmatch(row[column]) for row in rows)]
        return words[0] if len(words) == 1 else None
    names = [cell.lower().replace(" ", "_") for cell in header]
    return next((names.index(title) for title in _COLUMNS if title in names and names.index(title) in columns), None)


def _label(text: str) -> str:
    match = _ID.match(text)
    return match[0] if match else text
