"""How images lie in a folder: in one folder a class, under a table of labels, or unlabelled; and in which parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgewise.calib_data import DataError
from edgewise.calib_data._class_lists import known_names, list_beside
from edgewise.calib_data._label_tables import StrangerError, Table, read_table
from edgewise.calib_data._table_files import SUFFIXES, is_table
from edgewise.calib_data._walk import Found, describe_left_out, is_hidden, walk_folder

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
    if not label_folders and not part_tables:
        return {"whole": _read_part(place, _whole_table(place, table), listed)}
    if "calib" in folders and label_folders:
        label_folders["calib"] = folders["calib"]
    sources: dict[str, tuple[Path, Path | None]] = {part: (place, path) for part, path in part_tables.items()}
    for part, folder in label_folders.items():
        sources[part] = (folder, _table_of(folder, place, table))
    return _read_labelled(sources, listed)


def _read_labelled(sources: Mapping[str, tuple[Path, Path | None]], listed: Sequence[str]) -> dict[str, Images]:
    """The parts, less those without labels, as competitions give their test images; a lone rest is the whole set."""
    parts, without = dict[str, Images](), dict[str, _UnlabelledError]()
    for part, (root, table) in sources.items():
        try:
            parts[part] = _read_part(root, table, listed)
        except _UnlabelledError as error:
            without[part] = error
    for part in ("test", "val"):
        if _is_unlabelled(part, parts, listed):
            root = parts.pop(part).root
            without[part] = _UnlabelledError(f"{root}: {parts['train'].root.name} has no such class")
    if not parts:
        raise next(iter(without.values()))
    if not without:
        return parts
    first, *others = parts
    notes = tuple(f"{part} is left out, it has no labels" for part in without)
    parts[first] = replace(parts[first], notes=(*parts[first].notes, *notes))
    return parts if others else {"whole": parts[first]}


def _is_unlabelled(part: str, parts: Mapping[str, Images], listed: Sequence[str]) -> bool:
    """Whether a part's one folder means no class: a name that training images do not have, and there are others to judge."""
    if part not in parts or "train" not in parts or not {"test", "val"} & (parts.keys() - {part}):
        return False
    classes = parts[part].classes
    return len(classes) == 1 and not known_names(classes, listed or parts["train"].classes)


class _UnlabelledError(DataError):
    """Images are there, and nothing says what they show."""


def _first_folder(place: Path, names: Sequence[str]) -> Path | None:
    """The folder called by the first of ``names`` that there is, in upper or lower case."""
    folders = {folder.name.casefold(): folder for folder in reversed(_list_folders(place))}
    return next((folders[name] for name in names if name in folders), None)


def _has_folders(root: Path) -> bool:
    return any(entry.is_dir() and not is_hidden(entry) for entry in root.iterdir())


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
    try:
        read = read_table(table, walked.images)
    except StrangerError as error:
        raise _UnlabelledError(str(error)) from error
    files = tuple(path for path in walked.images if path in read.labels)
    remaining = len(walked.images) - len(files)
    notes = [f"{remaining:,} images left out, {table.name} has no label for them"] if remaining else []
    if read.missing:
        notes.append(f"{len(read.missing):,} rows of {table.name} name no image that is there, first {read.missing[0]}")
    names = _names_of(root, files, read)
    if files and names.count(None) == len(names):
        raise _UnlabelledError(
            f"{table}: a label for each image is wanted, found names of images alone, which lie in no class's folder; add "
            "a column called label"
        )
    classes = tuple(sorted({name for name in names if name is not None}))
    return Images(root=root, files=files, names=names, classes=classes, notes=(*left_out, *notes))


def _names_of(root: Path, files: Sequence[Path], read: Table) -> tuple[str | None, ...]:
    """As the table says, or, where it says none, each image's folder."""
    return tuple(read.labels[path] or (path.parent.name if path.parent != root else None) for path in files)


def _by_folder(root: Path, files: Found, left_out: tuple[str, ...], listed: Sequence[str]) -> Images:
    top = _top_folder(root, files.images, listed)
    classes = tuple(path.name for path in _list_folders(top))
    inside = [path for path in files.images if path.parent != root and path.is_relative_to(top) and path.parent != top]
    loose = len(files.images) - len(inside)
    names = _classes_of([path.relative_to(top) for path in inside], listed)
    counts = Counter(names)
    empty = [name for name in classes if not counts[name] and not _holds_any(top / name, inside)]
    odd = [name for name in empty if any((top / name).rglob("*"))]
    if not listed and odd and len(set(names)) == 1:
        raise DataError(
            f"{root}: a folder for each of at least two classes is wanted, found images in {names[0]} alone, beside "
            f"{', '.join(odd)}, which hold none; put a table of labels (labels.csv: file,label) beside the images"
        )
    notes = list(left_out)
    if inner := _folders_inside([path.relative_to(top) for path in inside], names):
        notes.append(f"folders inside a class are not told apart: {inner}")
    if loose:
        notes.append(f"{loose:,} images left out, they lie in no class's folder but directly in {root.name}")
    if empty:
        notes.append(f"{_folder_count(len(empty))} empty: {', '.join(empty[:4])}{', …' if len(empty) > 4 else ''}")
    every = tuple(sorted(set(names) | set(empty)))
    return Images(root=root, files=tuple(inside), names=names, classes=every, notes=tuple(notes))


def _folders_inside(paths: Sequence[Path], names: Sequence[str]) -> str:
    """An example of a class that has images in several folders; empty where none has."""
    folders: dict[str, set[str]] = {}
    for path, name in zip(paths, names, strict=True):
        folders.setdefault(name, set()).add(path.parent.as_posix())
    return next(
        (f"{', '.join(sorted(some)[:3])} count as {name}" for name, some in folders.items() if len(some) > 1), ""
    )


def _folder_count(count: int) -> str:
    return "1 class folder is" if count == 1 else f"{count:,} class folders are"


def _holds_any(folder: Path, images: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in images)


def _top_folder(root: Path, images: Sequence[Path], listed: Sequence[str]) -> Path:
    """Where the classes' folders lie: below the one folder with images, where it holds nothing but folders of them."""
    folders = [folder for folder in _list_folders(root) if _holds_any(folder, images)]
    if len(folders) != 1 or known_names([folders[0].name], listed):
        return root
    inside = [path for path in images if path.is_relative_to(folders[0])]
    nested = all(path.parent != folders[0] for path in inside)
    return _top_folder(folders[0], inside, listed) if nested else root


def _list_folders(root: Path) -> list[Path]:
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not is_hidden(folder)]
    return sorted(folders, key=lambda found: found.name)


def _classes_of(inside: Sequence[Path], listed: Sequence[str]) -> tuple[str, ...]:
    """The classes of images at paths below the classes' folders: the nearest folder in the list, else the first."""
    classes = known_names({folder for path in inside for folder in path.parts[:-1]}, listed)
    return tuple(
        next((name for name in reversed(path.parts[:-1]) if name in classes), path.parts[0]) for path in inside
    )
