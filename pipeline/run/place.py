"""A run's folder: one run in it, one process at a time, and none of an earlier run's files among its own."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.errors import EvidenceError, RequestError
from edgewise.files import parts
from edgewise.report.document import FILE, Report
from edgewise.report.outcomes import read_outcomes
from edgewise.report.watch import Watch
from edgewise.run import usage
from edgewise.store import whole
from edgewise.store.reading import read_json
from edgewise.store.whole import disk_errors
from edgewise.verify import manifest, signature

_LOCK = ".lock"


def check_owner(place: Path, recipe: Mapping[str, Any], data_digest: str) -> None:
    """Refuse a folder that holds the run of another recipe, network or data set, by their names.

    ``recipe``: as the report describes it. The same images under another name are the same data set. Raises RequestError.
    """
    if _is_search(place):
        raise RequestError(
            f"{place} holds a search, and a run's report would take the place of its own; name another --out"
        )
    owner = _read_owner(place)
    if owner is None:
        return
    named = {"recipe": "name", "network": "model", "data": "data"}
    other = [
        what for what, key in named.items() if key in owner and not _is_same(key, str(owner[key]), str(recipe[key]))
    ]
    if "data" in other and _data_digest(place) == data_digest:
        other.remove("data")
    if other:
        theirs, ours = (", ".join(f"{what} {fields[named[what]]}" for what in other) for fields in (owner, recipe))
        raise RequestError(
            f"{place} holds a run of {theirs}; this one is of {ours}, and their files would mix. Name another folder with "
            "--out, or take that one away"
        )


def _is_search(place: Path) -> bool:
    try:
        document = read_json(place / FILE)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("kind") == "search"


def _read_owner(place: Path) -> Mapping[str, Any] | None:
    """What the report in the folder says of its recipe; None where there is none that can be read."""
    try:
        recipe = read_json(place / FILE)["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _is_same(key: str, one: str, other: str) -> bool:
    if key == "model" and ".py:" in one and ".py:" in other:
        return _resolve_code(one) == _resolve_code(other)
    return one == other


def _resolve_code(reference: str) -> tuple[Path, str]:
    path, _, function = reference.rpartition(":")
    return Path(path).resolve(), function


def _data_digest(place: Path) -> str | None:
    """Of the images that the run in the folder was judged on; None where it kept nothing that can be read."""
    try:
        outcomes = read_outcomes(place)
    except RequestError:
        return None
    return None if outcomes is None else outcomes.data


@contextmanager
def hold_place(place: Path, watch: Watch) -> Iterator[None]:
    """The folder for this process alone, within the block; another one's end is waited for, and said."""
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch.say(f"another run writes to {place}; waiting for its end …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep_earlier(place: Path, report: Report) -> list[str]:
    """Take away the files that an earlier run delivered into the folder and this one did not; their names.

    Only what a manifest lists goes, and nothing where this run delivered no file.
    """
    current = {(place / artifact.path).resolve() for artifact in report.artifacts}
    if not current:
        return []
    artifacts = [path.with_name(path.name.removesuffix(manifest.SUFFIX)) for path in _manifests(place)]
    earlier = [artifact for artifact in artifacts if artifact.resolve() not in current]
    for artifact in earlier:
        _remove_artifact(artifact)
    used = {name for artifact in artifacts if artifact not in earlier for name in _checkpoints_of(artifact)}
    for artifact in earlier:
        for name in _checkpoints_of(artifact) - used:
            whole.remove(place / "checkpoints" / name)
        whole.remove(manifest.path_of(artifact))
    return [artifact.name for artifact in earlier]


def _manifests(place: Path) -> list[Path]:
    return sorted((place / "artifacts").glob(f"*/*{manifest.SUFFIX}"))


def _remove_artifact(artifact: Path) -> None:
    beside = (manifest.CARD, manifest.GOLDEN, usage.SUFFIX, signature.SUFFIX)
    for path in (*parts.roots(artifact), *(artifact.with_name(artifact.name + suffix) for suffix in beside)):
        whole.remove(path)


def _checkpoints_of(artifact: Path) -> set[str]:
    """The folders of the networks that a file's manifest lists."""
    try:
        names = manifest.read(artifact)
    except EvidenceError:
        return set()
    start = f"{manifest.CHECKPOINTS}/"
    return {name.removeprefix(start).split("/")[0] for name in names if name.startswith(start)}
