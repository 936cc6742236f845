"""How images lie in a folder: in one folder a class, under a table of labels, or unlabelled; and in which parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.calib_data import DataError
from edgewise.calib_data._class_lists import known_names, list_beside
from edgewise.calib_data._label_tables import Table, read_table
from edgewise.calib_data._table_files import SUFFIXES, is_table
from edgewise.calib_data._walk import Found, describe_left_out, walk_folder

_ENDS = ("", "_labels", "-labels", "_list", "_annotations")
"""What a table's name has behind the part's: val.csv, val_labels.csv, train_list.txt, val_annotations.txt."""
_PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "calib": ("calib", "calibration"),
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images as they were found, each with the name of its class; None: unlabelled."""

    root: Path
    files: tuple[Path, ...]
    names: tuple[str | None, ...]
    classes: tuple[str, ...]
    """Every name that a folder or a label has, those of empty folders too."""
    notes: tuple[str, ...] = ()
    """What was left out or is empty, one sentence each."""


def find_parts(place: Path, table: Path | None, listed: Sequence[str]) -> dict[str, Images]:
    """The parts in ``place`` under their names (train, test, val, calib), or all its images as ``whole``.

    ``table``: the labels, where they are not found by name; ``listed``: the class list, by which a folder between is
    told from a class. A folder called as a part that holds images and no folders is a class, unless a table labels them;
    one called calib may be unlabelled beside other parts. Where no folder is a part, two tables or more that are called
    so (train.txt, val.txt) say which images belong to which.
    """
    folders = {part: folder for part, names in _PARTS.items() if (folder := _first_folder(place, names))}
    label_folders = {
        part: folder_of_part
        for part, folder_of_part in folders.items()
        if _has_folders(folder_of_part) or _table_of(folder_of_part, place, table)
    }
    part_tables = {} if label_folders or table else _tables_of_parts(place)
    if part_tables:
        return {part: _read_part(place, path, listed) for part, path in part_tables.items()}
    if not label_folders:
        return {"whole": _read_part(place, _whole_table(place, table), listed)}
    if "calib" in folders:
        label_folders["calib"] = folders["calib"]
    return {
        part: _read_part(folder_of_part, _table_of(folder_of_part, place, table), listed)
        for part, folder_of_part in label_folders.items()
    }


def _first_folder(place: Path, names: Sequence[str]) -> Path | None:
    """The folder called by the first of ``names`` that there is, in upper or lower case."""
    folders = {folder.name.casefold(): folder for folder in reversed(_list_folders(place))}
    return next((folders[name] for name in names if name in folders), None)


def _has_folders(root: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir())


def _table_of(part: Path, place: Path, given: Path | None) -> Path | None:
    """The table of a part's labels: in its folder, or beside it by its name (``val.csv``, ``val_labels.csv``)."""
    if given is not None:
        return given
    inside = [] if len(_list_folders(part)) > 1 else _find_tables(part)
    return _only_table(inside) or _table_called(place, (part.name,))


def _table_called(place: Path, names: Sequence[str]) -> Path | None:
    paths = (place / f"{name}{end}{suffix}" for name in names for end in _ENDS for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _tables_of_parts(place: Path) -> dict[str, Path]:
    """The tables that share a folder's images out, where there are several."""
    tables = {part: path for part, names in _PARTS.items() if (path := _table_called(place, names))}
    return tables if len(tables) > 1 else {}


def _whole_table(place: Path, given: Path | None) -> Path | None:
    """The table of a set without parts; images in two folders or more are labelled by these, whatever else lies there."""
    return given or (None if len(_list_folders(place)) > 1 else _only_table(_find_tables(place)))


def _find_tables(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path != list_beside(root) and is_table(path))


def _only_table(tables: Sequence[Path]) -> Path | None:
    if len(tables) > 1:
        raise DataError(
            f"{tables[0].parent}: one table of labels is wanted, found {', '.join(path.name for path in tables)}; name "
            "the one that counts: imagefolder:DIR?labels=FILE"
        )
    return tables[0] if tables else None


def _read_part(root: Path, table: Path | None, listed: Sequence[str]) -> Images:
    walked = walk_folder(root)
    others = tuple(path for path in walked.others if path != table)
    left_out = describe_left_out(others, walked.broken, root)
    if table is not None:
        return _by_table(root, walked, table, left_out)
    if not _has_folders(root):
        return Images(root=root, files=walked.images, names=(None,) * len(walked.images), classes=(), notes=left_out)
    return _by_folder(root, walked, left_out, listed)


def _by_table(root: Path, walked: Found, table: Path, left_out: tuple[str, ...]) -> Images:
    read = read_table(table, walked.images)
    files = tuple(path for path in walked.images if path in read.labels)
    remaining = len(walked.images) - len(files)
    notes = [f"{remaining:,} images left out, {table.name} has no label for them"] if remaining else []
    if read.missing:
        notes.append(f"{len(read.missing):,} rows of {table.name} name no image that is there, first {read.missing[0]}")
    names = _names_of(root, files, read)
    if files and names.count(None) == len(names):
        raise DataError(
            f"{table}: a label for each image is wanted, found names of images alone, which lie in no class's folder; add "
            "a column called label"
        )
    classes = tuple(sorted({name for name in names if name is not None}))
    return Images(root=root, files=files, names=names, classes=classes, notes=(*left_out, *notes))


def _names_of(root: Path, files: Sequence[Path], read: Table) -> tuple[str | None, ...]:
    """As the table says, or, where it says none, each image's folder."""
    return tuple(read.labels[path] or (path.parent.name if path.parent != root else None) for path in files)


def _by_folder(root: Path, files: Found, left_out: tuple[str, ...], listed: Sequence[str]) -> Images:
    top = _top_folder(root, listed)
    classes = tuple(path.name for path in _list_folders(top))
    inside = [path for path in files.images if path.parent != root and path.is_relative_to(top) and path.parent != top]
    loose = len(files.images) - len(inside)
    names = _classes_of([path.relative_to(top) for path in inside], listed)
    counts = Counter(names)
    empty = [name for name in classes if not counts[name] and not _holds_all(top / name, inside)]
    notes = list(left_out)
    if loose:
        notes.append(f"{loose:,} images left out, they lie in no class's folder but directly in {root.name}")
    if empty:
        notes.append(f"{_folder_count(len(empty))} empty: {', '.join(empty[:4])}{', …' if len(empty) > 4 else ''}")
    every = tuple(sorted(set(names) | set(empty)))
    return Images(root=root, files=tuple(inside), names=names, classes=every, notes=tuple(notes))


def _folder_count(count: int) -> str:
    return "1 class folder is" if count == 1 else f"{count:,} class folders are"


def _holds_all(folder: Path, images: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in images)


def _top_folder(root: Path, listed: Sequence[str]) -> Path:
    """Where the classes' folders lie: below a folder that stands alone and holds nothing but folders."""
    folders = _list_folders(root)
    alone = len(folders) == 1 and _has_folders(folders[0]) and not known_names([folders[0].name], listed)
    return _top_folder(folders[0], listed) if alone else root


def _list_folders(root: Path) -> list[Path]:
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted(folders, key=lambda found: found.name)


def _classes_of(inside: Sequence[Path], listed: Sequence[str]) -> tuple[str, ...]:
    """The classes of images at paths below the classes' folders: the nearest folder in the list, else the first."""
    classes = known_names({folder for path in inside for folder in path.parts[:-1]}, listed)
    return tuple(
        next((name for name in reversed(path.parts[:-1]) if name in classes), path.parts[0]) for path in inside
    )
