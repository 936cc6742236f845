"""The manifest beside a written file: the SHA-256 of every file that it, and the evidence for it, consist of.

It is text as ``sha256sum`` writes it, so that ``sha256sum -c`` in the file's folder reads it too. Everything is held against
it before anything is parsed: what is read afterwards is what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgewise.errors import EvidenceError, RequestError
from edgewise.files import parts
from edgewise.store.entries import file_digest
from edgewise.store.reading import read_regular
from edgewise.store.whole import write_whole

SUFFIX = ".sha256"
CARD, GOLDEN, USAGE = ".card.json", ".golden.safetensors", ".md"
CHECKPOINTS = PurePosixPath("../../checkpoints")
"""Where a run leaves the networks of its files, from a file's folder."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_LARGEST = 1_000_000


@dataclass(frozen=True)
class Problem:
    """A file that is not what the manifest says."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


def path_of(artifact: Path) -> Path:
    """Where a file's manifest lies."""
    return artifact.with_name(artifact.name + SUFFIX)


def files_of(artifact: Path) -> list[Path]:
    """Every file of an artifact, its card, its golden images, and how it is used, as far as they are there."""
    beside = (artifact.with_name(artifact.name + suffix) for suffix in (CARD, GOLDEN, USAGE))
    files = (*parts.roots(artifact), *(place for place in beside if place.is_file()))
    return sorted(
        file for root in files for file in ([root] if not root.is_dir() else root.rglob("*")) if not file.is_dir()
    )


def write(artifact: Path, checkpoint: str) -> None:
    """Write the manifest of a delivered file; ``checkpoint``: its network's name in the run's folder, empty for none."""
    folder = artifact.parent
    files = {file.relative_to(folder).as_posix(): file for file in files_of(artifact)}
    if checkpoint:
        place = CHECKPOINTS / checkpoint
        files |= {f"{place}/{file.name}": file for file in sorted((folder / place).iterdir())}
    text = "".join(f"{file_digest(file)}  {name}\n" for name, file in files.items())
    write_whole(path_of(artifact), text.encode())


def read(artifact: Path) -> dict[str, str]:
    """Name, relative to the file's folder -> SHA-256. Raises EvidenceError where it is missing, damaged, or names other files."""
    place = path_of(artifact)
    try:
        entries = _parse_entries(read_regular(place, _LARGEST).decode())
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"cannot read {place}: {error}. A run writes this list of digests beside its file; keep the two together, or run "
            "the recipe again"
        ) from error
    for required in (artifact.name + CARD, artifact.name):
        if not any(name == required or name.startswith(f"{required}/") for name in entries):
            raise EvidenceError(f"{place} names no {required}; it is not the one that was written with it")
    return entries


def _parse_entries(text: str) -> dict[str, str]:
    """Raises ValueError for a text that is not, to the byte, as it was written: other readers end lines elsewhere."""
    *lines, rest = text.split("\n")
    if rest:
        raise ValueError("it ends in the midst of a line")
    entries = dict(_parse_entry(line) for line in lines)
    if len(entries) < len(lines):
        raise ValueError("it names a file twice")
    return entries


def _parse_entry(line: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"wanted a digest and a name in each line, found {line!r:.60}")
    digest, name = match.groups()
    if not name.isprintable():
        raise ValueError(f"it names a file with control characters: {name!r:.60}")
    path = PurePosixPath(name)
    inside = path.relative_to(CHECKPOINTS) if path.is_relative_to(CHECKPOINTS) else path
    if inside.is_absolute() or ".." in inside.parts or path.as_posix() != name:
        raise ValueError(f"it names a file outside the run's folder: {name!r:.60}")
    return name, digest


def problems(artifact: Path, entries: Mapping[str, str], checkpoint: Path | None = None) -> list[Problem]:
    """What is missing, changed, or lies there without being named; the network is asked for where a run left the file.

    ``checkpoint``: where the network is, if it is not where a run leaves it.
    """
    return [*_listed_problems(artifact, entries, checkpoint), *_unlisted_problems(artifact, entries)]


def _listed_problems(artifact: Path, entries: Mapping[str, str], checkpoint: Path | None) -> Iterator[Problem]:
    for name, digest in entries.items():
        place = artifact.parent / name
        if PurePosixPath(name).is_relative_to(CHECKPOINTS):
            if checkpoint is not None:
                place = checkpoint / PurePosixPath(name).name
            elif is_moved(artifact):
                continue
        if not place.is_file():
            yield Problem(name, "is missing" if not place.exists() else "is no regular file")
        elif (actual := file_digest(place)) != digest:
            yield Problem(name, f"was changed: its digest was {digest[:16]}…, found {actual[:16]}…")


def _unlisted_problems(artifact: Path, entries: Mapping[str, str]) -> Iterator[Problem]:
    for file in files_of(artifact):
        name = file.relative_to(artifact.parent).as_posix()
        if name not in entries:
            yield Problem(name, "was not there when the file was verified")


def refuse_other(path: Path) -> None:
    """Raise RequestError for what cannot be a written file: nothing, a pipe, a folder that a run wrote nothing about."""
    if path.is_file():
        return
    if not path.exists():
        raise RequestError(f"there is no file {path}")
    if not parts.is_artifact(path):
        raise RequestError(f"{path} is no regular file")
    if not any(path.with_name(path.name + suffix).exists() for suffix in (SUFFIX, CARD)):
        raise RequestError(
            f"{path} is a folder, and no run wrote it as a file; name one of the files in artifacts/TARGET"
        )


def require_whole(path: Path) -> None:
    """Raise RequestError for what is no written file, EvidenceError for one that is not what its run wrote."""
    refuse_other(path)
    if wrong := problems(path, read(path)):
        raise EvidenceError(f"{path} is not the file that was verified: {'; '.join(map(str, wrong))}")


def is_moved(artifact: Path) -> bool:
    """Whether a file was taken out of the folder ``artifacts/<target>`` that a run left it in, away from its network."""
    return artifact.resolve().parent.parent.name != "artifacts"
