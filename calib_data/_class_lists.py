"""Names of classes: lists that are given beside the images, and which entry of a list a folder or a label means."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.calib_data import DataError
from edgewise.calib_data._table_files import is_table

BESIDE = ("classes.txt", "labels.txt", "classes.json")
"""Names of the lists that are looked for in a set's folder, the first that is there counts."""

_WORDNET = re.compile(r"(n\d{8})(?:[\s,:;_\-]+(.*))?", flags=re.DOTALL)


def read_list(path: Path) -> tuple[str, ...]:
    """The class names in ``path``, in the order of a network's outputs.

    One a line (``tench``, ``n01440764 tench, Tinca tinca``, or ``0: tench`` counting up from 0); or JSON: a list,
    ``{"0": name}``, ``{"0": [WordNet id, name]}`` or ``{name: 0}``. Raises DataError for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: a list of class names is wanted, found: {error}; correct or remove it") from error
    names = _from_json(text, path) if path.suffix == ".json" else _from_lines(text, path)
    if len(names) < 2:
        raise DataError(f"{path}: names of at least two classes are wanted, one a line, found {len(names)}")
    return names


def list_beside(place: Path) -> Path | None:
    """The class list in folder ``place``, where there is one."""
    paths = (place / name for name in BESIDE)
    return next((path for path in paths if path.is_file() and not is_table(path)), None)


def _from_lines(text: str, path: Path) -> tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise DataError(
            f"{path}: one class a line is wanted, found line {lines.index('') + 1} empty; the place of a line is the "
            "number of its class, so name the class there, or remove the line"
        )
    matches = [re.fullmatch(r"(\d+)\s*[:,;\t ]\s*(\D.*)", line) for line in lines]
    if all(match and int(match[1]) == place for place, match in enumerate(matches)):
        return tuple(match[2] for match in matches if match)
    return tuple(lines)


def _from_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: JSON is wanted, found: {error}; correct it") from error
    if isinstance(content, list):
        return tuple(map(_one_name, content))
    if isinstance(content, dict) and content:
        pairs = _numbered_pairs(content)
        if sorted(pairs) == list(range(len(content))):
            return tuple(pairs[number] for number in range(len(content)))
    raise DataError(
        f"{path}: a list of names, or an object of names and the numbers 0 to n − 1, is wanted, found "
        f"{type(content).__name__}; write the names in the order of the network's outputs"
    )


def _numbered_pairs(content: dict[str, Any]) -> dict[int, str]:
    if all(isinstance(number, int) for number in content.values()):
        return {number: name for name, number in content.items()}
    return {int(number): _one_name(name) for number, name in content.items() if number.isdecimal()}


def _one_name(entry: Any) -> str:
    return " ".join(map(str, entry)) if isinstance(entry, list) else str(entry)


@dataclass(frozen=True)
class Meaning:
    """Which entry of a list each name means, and what a person should hear about how that was found."""

    index: dict[str, int]
    """Name -> its place in the list."""
    note: str = ""


def match_names(names: Iterable[str], listed: Sequence[str], source: str) -> Meaning:
    """What each of ``names`` (folders, labels, another list's entries) means in ``listed``.

    In turn: the same text; the same WordNet id; the same name beside the id; one of an entry's names, which commas part.
    Upper case, spaces, underscores and hyphens are alike. Names that are all numbers, where the list's are not, are
    places in it from 0, or from 1 where one is as large as the list is long. Raises DataError, naming ``source``, for a
    name that means no entry, or several, and for two that mean the same.
    """
    unique = list(dict.fromkeys(names))
    if unique == list(listed):
        return Meaning({name: place for place, name in enumerate(listed)})
    if _numbers(unique) and not _numbers(listed):
        return _by_number(unique, listed, source)
    entries = _Entries(listed)
    matches = {name: entries.find(name) for name in unique}
    _check_found(matches, listed, source)
    index = {name: places[0] for name, places in matches.items()}
    _check_apart(index, listed, source)
    return Meaning(index)


def known_names(names: Iterable[str], listed: Sequence[str]) -> set[str]:
    """Those of ``names`` that mean an entry of the list, or several."""
    entries = _Entries(listed)
    return {name for name in names if entries.find(name)}


def _by_number(names: Sequence[str], listed: Sequence[str], source: str) -> Meaning:
    numbers = {name: int(name) for name in names}
    first = 1 if min(numbers.values()) >= 1 and max(numbers.values()) == len(listed) else 0
    outside = [name for name, number in numbers.items() if not 0 <= number - first < len(listed)]
    if outside:
        raise DataError(
            f"{source}: numbers of {len(listed)} classes are wanted, 0 to {len(listed) - 1}, found {_some_names(outside)}; "
            "correct them, or the list of classes"
        )
    index = {name: number - first for name, number in numbers.items()}
    _check_apart(index, listed, source)
    return Meaning(index, f"classes are named by number: {names[0]} is taken for {listed[index[names[0]]]!r}")


class _Entries:
    """A list's entries by everything that they may be called."""

    def __init__(self, listed: Sequence[str]) -> None:
        self._ways: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(4)]
        for place, entry in enumerate(listed):
            for way, keys in zip(self._ways, _entry_names(entry), strict=True):
                for key in keys:
                    way[key].append(place)

    def find(self, name: str) -> list[int]:
        """The places that ``name`` may mean, by the strictest way of reading it that means any."""
        whole, ids, rest, parts = _entry_names(name)
        attempts = [(0, whole), (1, ids), (2, whole | rest), (3, whole | rest), (3, parts)]
        for way, keys in attempts:
            places = sorted({place for key in keys for place in self._ways[way].get(key, [])})
            if places:
                return places
        return []


def _entry_names(entry: str) -> tuple[set[str], set[str], set[str], set[str]]:
    """An entry as a whole; its WordNet id; what stands beside the id; each name in that."""
    match = _WORDNET.fullmatch(entry.strip())
    rest = entry if match is None else (match[2] or "")
    ids = {match[1]} if match else set[str]()
    names = {_plain_words(part) for part in rest.split(",")}
    return {_plain_words(entry)}, ids, {_plain_words(rest)} - {""}, names - {""}


def _plain_words(text: str) -> str:
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFC", text)).strip().casefold()


def _check_found(matches: dict[str, list[int]], listed: Sequence[str], source: str) -> None:
    if unknown := [name for name, places in matches.items() if not places]:
        entries = {name: entry for entry in listed for names in _entry_names(entry) for name in names}
        near = difflib.get_close_matches(_plain_words(unknown[0]), entries, n=1)
        hint = f" Did you mean {entries[near[0]]!r}?" if near else ""
        raise DataError(
            f"{source}: names of the {len(listed)} listed classes ({_some_names(listed)}) are wanted, found {_some_names(unknown)}, "
            f"which mean{'s' if len(unknown) == 1 else ''} none of them.{hint} Rename or remove, or correct the list"
        )
    if unclear := [(name, places) for name, places in matches.items() if len(places) > 1]:
        name, places = unclear[0]
        raise DataError(
            f"{source}: one class a name is wanted, {name!r} may be {_some_names([repr(listed[place]) for place in places])}; "
            "name it by its WordNet id, its number or its whole entry"
        )


def _check_apart(index: dict[str, int], listed: Sequence[str], source: str) -> None:
    first: dict[int, str] = {}
    for name, place in index.items():
        if place in first:
            raise DataError(
                f"{source}: one name a class is wanted, {first[place]!r} and {name!r} both mean {listed[place]!r}; "
                "join or rename them"
            )
        first[place] = name


def _some_names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the order of their text, as torchvision's ImageFolder numbers them; numbers by their value."""
    unique_names = set(names)
    return tuple(
        sorted(unique_names, key=lambda name: (int(name), name)) if _numbers(unique_names) else sorted(unique_names)
    )


def order_note(names: Sequence[str]) -> str:
    """What to say where numbers were not put in the order of their text; else nothing."""
    if not _numbers(names) or list(names) == sorted(names):
        return ""
    listing = ", ".join(sorted(names)[:4])
    return (
        f"classes are numbers and stand in the order of their values; torchvision's ImageFolder would read {listing}, …: "
        "for a network trained in that order, list the classes in classes.txt"
    )


def _numbers(names: Iterable[str]) -> bool:
    texts = list(names)
    return bool(texts) and all(name.isdecimal() for name in texts)
