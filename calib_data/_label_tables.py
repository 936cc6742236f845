"""A table of labels beside images: one row an image, as CSV, TSV or columns parted by spaces."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.calib_data import DataError

SUFFIXES = (".csv", ".tsv")

_COLUMNS = (
    "label", "labels", "class", "class_name", "classname", "category", "target", "wnid", "synset", "name",
    "predictionstring", "class_id", "class_index", "label_id", "y", "breed", "species", "id_code",
)  # fmt: skip
_ID = re.compile(r"n\d{8}(?=\s+\d)")
"""A WordNet id with a box behind it, as ImageNet's own tables have them."""


@dataclass(frozen=True)
class Table:
    """What a table says of the images that lie beside it."""

    labels: Mapping[Path, str]
    """Image -> its label, as it is written."""
    missing: tuple[str, ...]
    """Images that the table names and that are not there."""


def read_table(path: Path, images: Sequence[Path]) -> Table:
    """The labels in ``path`` of those of ``images`` that it names by path, by name, or by name without suffix.

    The column of files is the one that names most of them; that of labels is called so (label, class, category, wnid …),
    or is the only other one. Raises DataError where there are none such, and for an image with two labels.
    """
    rows = _read_rows(path)
    images_by_name = _by_name(images, path.parent)
    column = _file_column(rows, images_by_name, path)
    header = rows[0] if images_by_name.get(rows[0][column]) is None else None
    label = _label_column(rows, header, column, path)
    labels: dict[Path, str] = {}
    missing = []
    for row in rows if header is None else rows[1:]:
        image, text = images_by_name.get(row[column]), _label(row[label])
        if image is None:
            missing.append(row[column])
        elif labels.setdefault(image, text) != text:
            raise DataError(f"{path}: one label an image is wanted, {row[column]} has {labels[image]!r} and {text!r}")
    return Table(labels, tuple(missing))


def _read_rows(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: a table of labels is wanted, found: {error}; save it as UTF-8 text") from error
    lines = [line for line in lines if line.strip()]
    parting = next((sign for sign in ("\t", ",", ";") if lines and sign in lines[0]), None)
    split = [line.split() for line in lines] if parting is None else list(csv.reader(lines, delimiter=parting))
    rows = [[cell.strip() for cell in row] for row in split]
    width = len(rows[0]) if rows else 0
    if width < 2 or any(len(row) < width for row in rows):
        short = next((place for place, row in enumerate(rows) if len(row) < max(width, 2)), 0)
        raise DataError(
            f"{path}: rows of a file and its label are wanted, parted by commas, tabs or spaces, found "
            f"{lines[short] if lines else 'an empty file'!r} as row {short + 1}; correct it"
        )
    return rows


def _by_name(images: Sequence[Path], root: Path) -> dict[str, Path | None]:
    """Every way to name an image -> the image; None where several go by that name."""
    paths: dict[str, Path | None] = {}
    for image in images:
        inside = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
        for name in {inside, str(image), f"./{inside}", image.name, image.stem}:
            paths[name] = None if name in paths and paths[name] != image else image
    return paths


def _file_column(rows: Sequence[Sequence[str]], known: Mapping[str, Path | None], path: Path) -> int:
    hits = [sum(known.get(row[column]) is not None for row in rows) for column in range(len(rows[0]))]
    if not max(hits):
        raise DataError(
            f"{path}: a column with the names of the images beside it is wanted, found {', '.join(rows[0])} and "
            f"{len(known):,} names of images, none of which it has; correct the names, or put the images there"
        )
    return hits.index(max(hits))


def _label_column(rows: Sequence[Sequence[str]], header: Sequence[str] | None, files: int, path: Path) -> int:
    others = [column for column in range(len(rows[0])) if column != files]
    if header is not None:
        names = [cell.lower().replace(" ", "_") for cell in header]
        for title in _COLUMNS:
            if title in names and names.index(title) != files:
                return names.index(title)
    if len(others) > 1:
        raise DataError(
            f"{path}: a column called label or class is wanted, found {', '.join(rows[0])}; name it so in the first row"
        )
    return others[0]


def _label(text: str) -> str:
    match = _ID.match(text)
    return match[0] if match else text
