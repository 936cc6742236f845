"""Files that hold a table of labels, read as rows of text: CSV, TSV, lists in plain text, JSON and lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgewise.calib_data import DataError
from edgewise.calib_data._walk import image_suffixes

_SURE = (".csv", ".tsv")
"""Suffixes of tables; files of the others hold anything, and are tables where they name images."""
SUFFIXES = (*_SURE, ".txt", ".json", ".jsonl")
_GLANCE = 2**16
"""Bytes in which the first name of an image is looked for."""


def is_table(path: Path) -> bool:
    """Whether ``path`` is a table by its suffix or, text and JSON, by the name of an image in its first rows."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not path.is_file():
        return False
    return suffix in _SURE or _names_images(path)


def _names_images(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            beginning = stream.read(_GLANCE)
    except (OSError, UnicodeDecodeError):
        return False
    lines = islice((line for line in beginning.splitlines() if line.strip()), None if path.suffix != ".txt" else 2)
    words = " ".join(lines).translate(str.maketrans('",;[]{}:', " " * 8)).split()
    return any(word.lower().endswith(tuple(image_suffixes())) for word in words)


def read_rows(path: Path) -> list[list[str]]:
    """The rows of the table in ``path``, as many cells in each as in the first at least; the first may be a header.

    JSON: ``{file: label}``, ``[[file, label]]``, ``[{"file": …, "label": …}]``, one such object a line, or COCO's
    ``images`` and ``annotations``. Raises DataError for what is no table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: a table of labels is wanted, found: {error}; save it as UTF-8 text") from error
    rows = _read_json(text, path) if path.suffix.lower() in (".json", ".jsonl") else _read_lines(text)
    width = len(rows[0]) if rows else 0
    if not width or any(len(row) < width for row in rows):
        short = next((place for place, row in enumerate(rows) if len(row) < width), 0)
        raise DataError(
            f"{path}: rows of a file and its label are wanted, parted by commas, tabs or spaces, found "
            f"{rows[short] if rows else 'an empty file'!r} as row {short + 1}; correct it"
        )
    return rows


def _read_lines(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    sign = next((sign for sign in ("\t", ",", ";") if lines and sign in lines[0]), None)
    split = _split_at_spaces(lines) if sign is None else list(csv.reader(lines, delimiter=sign))
    return [[cell.strip() for cell in row] for row in split]


def _split_at_spaces(lines: Sequence[str]) -> list[list[str]]:
    """Columns parted by spaces; where names have spaces, too, the last word is parted from the rest."""
    rows = [line.split() for line in lines]
    suffixes = tuple(image_suffixes())
    if all(line.strip().lower().endswith(suffixes) for line in lines):
        return [[line.strip()] for line in lines]
    return rows if len({len(row) for row in rows}) == 1 else [line.rsplit(maxsplit=1) for line in lines]


def _read_json(text: str, path: Path) -> list[list[str]]:
    try:
        lines = [line for line in text.splitlines() if line.strip()] if path.suffix.lower() == ".jsonl" else [text]
        contents = [json.loads(line) for line in lines]
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: JSON is wanted, found: {error}; correct it") from error
    content: Any = contents if path.suffix.lower() == ".jsonl" else contents[0]
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _rows_of_coco(content, path)
    if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), list):
        content = next(iter(content.values()))
    if isinstance(content, dict):
        return [[name, _as_text(label)] for name, label in content.items()]
    if isinstance(content, list) and content and all(isinstance(entry, list) for entry in content):
        return [[_as_text(cell) for cell in entry] for entry in content]
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        header = list(content[0])
        return [header, *([_as_text(entry.get(name, "")) for name in header] for entry in content)]
    raise DataError(
        f"{path}: labels of images are wanted, {{file: label}} or a list of such objects, found {type(content).__name__}; "
        "correct it"
    )


def _as_text(value: Any) -> str:
    """A cell as it is written; a list of one label is that label."""
    return _as_text(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)


def _rows_of_coco(content: dict[str, Any], path: Path) -> list[list[str]]:
    try:
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        classes = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        pairs = [(files[entry["image_id"]], entry["category_id"]) for entry in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: images with id and file_name and annotations with image_id and category_id are wanted, found none "
            f"of {error}; correct it"
        ) from error
    return [["file_name", "category"], *([name, classes.get(number, str(number))] for name, number in pairs)]
