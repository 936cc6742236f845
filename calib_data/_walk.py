"""The images in a folder and below, and what else lies there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SYSTEM = frozenset(("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin", "__pycache__"))
_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """What lies in a folder and below, hidden files and folders left out, in the order of their paths."""

    images: tuple[Path, ...]
    others: tuple[Path, ...]
    """Files that are no images, or in no format that is read here."""
    broken: tuple[Path, ...]
    """Links that lead nowhere."""


def walk_folder(root: Path) -> Found:
    """Everything below ``root``; links to folders are followed, once each."""
    images: list[Path] = []
    others: list[Path] = []
    unreadable: list[Path] = []
    for path in sorted(_walk_files(root, set())):
        if path.suffix.lower() in image_suffixes():
            (images if path.is_file() else unreadable).append(path)
        elif not path.exists():
            unreadable.append(path)
        else:
            others.append(path)
    return Found(tuple(images), tuple(others), tuple(unreadable))


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden, or one that a system or a packer puts beside everything."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM


def _walk_files(root: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(root)
    if real in seen:
        return
    seen.add(real)
    for path in root.iterdir():
        if is_hidden(path):
            continue
        if path.is_dir():
            yield from _walk_files(path, seen)
        else:
            yield path


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the images that can be read: HEIC and AVIF only where a decoder for them is installed."""
    endings = set(_SUFFIXES)
    from PIL import features

    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
        endings |= {".heic", ".heif"}
    if features.check("avif"):
        endings.add(".avif")
    return frozenset(endings)


def describe_left_out(others: Sequence[Path], broken: Sequence[Path], root: Path) -> tuple[str, ...]:
    """One sentence for each kind of file that was left out, with their number and some names."""
    kinds: dict[str, list[Path]] = {}
    for path in others:
        kinds.setdefault(path.suffix.lower() or "no suffix", []).append(path)
    notes = [
        f"{_count_words(paths)} left out, not read here ({kind}): {_names(paths, root)}"
        for kind, paths in kinds.items()
    ]
    notes += [f"{_count_words(broken)} left out, a link that leads nowhere: {_names(broken, root)}"] if broken else []
    heic = {".heic", ".heif"} & kinds.keys()
    return (*notes, *(["pillow-heif, once installed, reads .heic; or convert them"] if heic else []))


def _count_words(paths: Sequence[Path]) -> str:
    return f"{len(paths):,} file{'' if len(paths) == 1 else 's'}"


def _names(paths: Sequence[Path], root: Path) -> str:
    listing = ", ".join(path.relative_to(root).as_posix() for path in paths[:_SHOWN])
    return listing + (f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else "")
