"""What follows the ``?`` of ``imagefolder:DIR?size=224&resize=256``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from edgewise.calib_data import DataError, Stated
from edgewise.calib_data._photographs import Interpolation, Options

_LARGEST_SIDE = 4096
_NUMBERS = {"size": (1, _LARGEST_SIDE), "resize": (1, _LARGEST_SIDE), "flip": (0, 1), "train": (0, 1)}
_FILES = ("classes", "labels")
NAMES = ("size", "resize", "flip", "interpolation", "train", "classes", "labels")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A folder of images and what is asked of it."""

    directory: str
    options: Options
    flip: bool
    """Whether a mirrored image keeps its label."""
    train: bool | None
    """Whether some of a set without parts is kept for training; None: where its layout allows."""
    classes: Path | None
    labels: Path | None
    prepared: Mapping[str, Stated] = field(default_factory=dict)


def parse_request(path: str) -> Request:
    """The request ``DIR?name=value&name=value``. Raises DataError for an unknown option or a wrong value."""
    directory, texts = _split_options(path)
    for name, value in texts.items():
        _check_option(name, value)
    options = Options(
        size=int(texts.get("size", Options.size)),
        resize=int(texts.get("resize", Options.resize)),
        interpolation=_parse_interpolation(texts.get("interpolation", Options.interpolation)),
    )
    if options.shorter_side < options.size:
        raise DataError(
            f"imagefolder: resize of at least size is wanted, found {options.resize} and {options.size}; the cut of "
            "size × size would not fit"
        )
    return Request(
        directory=directory,
        options=options,
        flip=texts.get("flip", "1") == "1",
        train=None if "train" not in texts else texts["train"] == "1",
        classes=_find_file(texts, "classes", directory),
        labels=_find_file(texts, "labels", directory),
        prepared=_stated_preparation(options, texts),
    )


def complete(name: str, options: Mapping[str, object]) -> tuple[str, frozenset[str]]:
    """``imagefolder:DIR?…`` with the options that it does not say; and which were added."""
    _, own_options = _split_options(name.partition(":")[2])
    if "size" in own_options:  # whoever said the one chose the other with it
        own_options.setdefault("resize", "")
    additions = {key: str(value) for key, value in options.items() if key in NAMES and key not in own_options}
    sign = "&" if "?" in name and _split_options(name.partition(":")[2])[1] else "?"
    text = "&".join(f"{key}={value}" for key, value in additions.items())
    return (f"{name}{sign}{text}" if additions else name), frozenset(additions)


def _split_options(path: str) -> tuple[str, dict[str, str]]:
    """The folder and the options; the folder's own name may hold a question mark."""
    match = re.fullmatch(r"(?P<directory>.*?)(?:\?(?P<options>\w+=[^?]*))?", path, flags=re.DOTALL)
    assert match is not None
    options = {}
    for item in filter(None, (match["options"] or "").split("&")):
        name, _, value = item.partition("=")
        options[name] = value
    return match["directory"], options


def _check_option(name: str, value: str) -> None:
    if name not in NAMES:
        raise DataError(
            f"imagefolder: the options {', '.join(NAMES[:-1])} and {NAMES[-1]} are known, found {name!r}; correct it"
        )
    if name in _NUMBERS:
        low, high = _NUMBERS[name]
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise DataError(f"imagefolder: {name} as a whole number in {low} … {high} is wanted, found {value!r}")
    elif name not in _FILES:
        _parse_interpolation(value)


def _parse_interpolation(value: str) -> Interpolation:
    for choice in get_args(Interpolation):
        if value == choice:
            interpolation: Interpolation = choice
            return interpolation
    raise DataError(f"imagefolder: interpolation is one of {', '.join(get_args(Interpolation))}, found {value!r}")


def places_read(path: str) -> tuple[Path, ...]:
    """The folder, and where the files that options name may lie."""
    directory, texts = _split_options(path)
    files = [place for name in _FILES if name in texts for place in _candidates(texts[name], directory)]
    return (Path(directory).expanduser(), *files)


def _candidates(text: str, directory: str) -> tuple[Path, Path]:
    """A file as it was given, and in the set's folder."""
    return Path(text).expanduser(), Path(directory).expanduser() / text


def _find_file(texts: Mapping[str, str], name: str, directory: str) -> Path | None:
    if name not in texts:
        return None
    file = next((path for path in _candidates(texts[name], directory) if path.is_file()), None)
    if file is None:
        raise DataError(f"imagefolder: {name}={texts[name]}: a file is wanted, found none of that name; correct it")
    return file


def _stated_preparation(options: Options, texts: Mapping[str, str]) -> dict[str, Stated]:
    def origin(name: str) -> str:
        return "--data" if name in texts else "default"

    return {
        "size": Stated(f"{options.size} × {options.size} pixels, cut from the centre", origin("size")),
        "resize": Stated(f"shorter side to {options.shorter_side} pixels", origin("resize")),
        "interpolation": Stated(options.interpolation, origin("interpolation")),
        "channels": Stated("RGB", "--data"),
    }
