"""What a bundle says of itself: its files, what each is fed and was verified at, and the labelled images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.errors import RequestError
from edgewise.images.preprocess import Fed
from edgewise.store.json_values import decode, encode
from edgewise.store.reading import LARGEST_JSON, parse_json, read_regular
from edgewise.store.whole import write_whole

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden images of a file, and how far its answers to them may move elsewhere."""

    entry: str
    count: int
    answers: str
    """float32 [count, classes], the lower byte first, in base64."""
    worst: float
    mean: float
    made_on: Mapping[str, Any]
    """Where the answers were given: ``architecture``, ``cpu``, ``runtime``, ``emulator``; empty strings where unknown."""


@dataclass(frozen=True, kw_only=True)
class BundledFile:
    """One written file."""

    name: str
    target: str
    path: str
    """Entry of the file or package within the bundle."""
    entries: tuple[str, ...]
    """All entries it consists of."""
    sha256: str
    bytes: int
    precision: str
    fed: Fed
    mean: tuple[float, ...]
    """Per channel of its images."""
    std: tuple[float, ...]
    input_size: tuple[int, int]
    classes: int
    max_drop: float
    """Largest loss of top-1 from the host's on the slice, as a fraction."""
    baseline: bool
    """Whether the other files of its target are held against its time on the device."""
    golden: Golden | None
    host_answers: str
    """The class that the host's runtime gave each image of the slice, four hexadecimal digits each; empty: none could."""
    host_grade: str
    """``runtime`` or ``reference``; empty where nothing on the host could evaluate it."""
    failure: str = ""
    """Why the run that wrote it failed it; empty where it did not."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Labelled test images, the same for every file."""

    count: int
    shape: tuple[int, int, int]
    """Channels, height and width of the bytes."""
    classes: tuple[str, ...]
    data: str
    """The data set, as the run named it."""
    data_digest: str
    labels: str
    """Four hexadecimal digits an image."""
    available: int = 0
    """Labelled test images that there are; 0 where a bundle does not say."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle's contents."""

    schema: int
    run: str
    """Name of the recipe."""
    files: tuple[BundledFile, ...]
    slice: Slice
    wanted: Mapping[str, Any]
    """Package -> version in which the host verified the files."""
    entries: Mapping[str, Any] = field(default_factory=dict)
    """Entry -> SHA-256, the manifest excepted."""

    def named(self, name: str) -> BundledFile | None:
        """The file called so."""
        return next((file for file in self.files if file.name == name), None)

    def to_bytes(self) -> bytes:
        """As it lies in the bundle."""
        return json.dumps(encode(self), indent=1, ensure_ascii=False, allow_nan=False).encode()


def keep(manifest: Manifest, digest: str, run: Path) -> Path:
    """Note in the run's folder what the bundle of this digest holds, so that results of it can be taken in."""
    place = _kept_path(run, digest)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, manifest.to_bytes())
    return place


def find_kept(run: Path, digest: str) -> Manifest | None:
    """The contents of a bundle that was written from this run; None where there was none of this digest."""
    place = _kept_path(run, digest)
    if not place.is_file():
        return None
    try:
        content = read_regular(place, LARGEST_JSON)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {place}: {error}. Write the bundle again") from error
    return parse(content, str(place))


def parse(content: bytes, where: str) -> Manifest:
    """A manifest again. Raises RequestError for one that is damaged or of another version."""
    try:
        document: Any = parse_json(content)
        if isinstance(document, Mapping) and document.get("schema") != SCHEMA:
            raise ValueError(f"wanted schema {SCHEMA}, found {document.get('schema')!r}")
        return decode(Manifest, document, "manifest")
    except ValueError as error:
        raise RequestError(f"{where} is no bundle's manifest: {error}. Write the bundle again") from error


def _kept_path(run: Path, digest: str) -> Path:
    return run / "bundles" / f"{digest}.json"
