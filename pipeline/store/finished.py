"""Runs that came to their end: the same request again is answered by what they wrote, where nothing has changed.

A record holds what a run rested on and what it wrote, each by its digest. It answers only where no byte of either is
another, and where every result that the run took from the store is there still: who removes those wants them anew.
Nothing here needs torch, so that a run of which all is known does not pay for importing it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.store import user_code
from edgewise.store.entries import RECORD, file_digest, key_of
from edgewise.store.machine import machine_name, read_environment
from edgewise.store.sources import is_ours, project_files
from edgewise.store.whole import write_whole

FOLDER = "finished"
_HEEDED = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH", "PYTORCH", "ATEN_", "ONEDNN_", "DNNL_", "ORT_", "EDGEWISE_",
    "HOME",
)  # fmt: skip
"""How the variables begin that libraries and this program listen to, ..."""
_SET_BY_LIBRARIES = frozenset(
    ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
)
"""... but for those that they set themselves when they are imported."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that came to its end."""

    ground: Mapping[str, Any]
    """What it rested on, as ``survey_ground`` tells it."""
    made: Mapping[str, Any]
    """What the user's own code made; empty where there is none."""
    out: Path
    written: Mapping[str, str]
    """Files and folders in ``out`` -> their digests."""
    used: Sequence[str]
    """The results in the store that it used."""
    ended: float
    """In seconds of the epoch."""

    def is_unchanged(self) -> bool:
        """Whether it rests on the same still, and all that it wrote and used is whole; marks the latter as used."""
        return self._on_same_ground() and self._is_whole()

    def _on_same_ground(self) -> bool:
        return self.ground == survey_ground(Path(path) for path in self.ground["files"])

    def _is_whole(self) -> bool:
        return all(digest_tree(self.out / name) == digest for name, digest in self.written.items())

    def touch_results(self, root: Path) -> bool:
        """Mark the results that it used as used now; False where one is gone."""
        with contextlib.suppress(OSError):
            for key in self.used:
                if not (root / key / RECORD).is_file():
                    return False
                os.utime(root / key)
            return True
        return False


def survey_ground(files: Iterable[Path]) -> dict[str, Any]:
    """What a run rests on, as it is now: this program, what is installed, the machine, and ``files``: those and the folders
    that are read (the user's code, images, weights)."""
    return {
        "program": key_of(**{str(path): file_digest(path) for path in project_files()}),
        "installed": _digest_installed(),
        "circumstances": _describe_circumstances(),
        "files": {str(path.absolute()): digest_tree(path) for path in files},
    }


def is_ground_still(ground: Mapping[str, Any]) -> bool:
    """Whether all of ``ground`` but its files, of which ``stamp_files`` tells, is as it was when this process surveyed it.

    Nobody else sets this process's variables; what libraries set meanwhile is no change.
    """
    now = survey_ground(())
    now["circumstances"]["variables"] = ground["circumstances"]["variables"]
    return now | {"files": ground["files"]} == ground


def stamp_files(files: Iterable[Path]) -> str:
    """What the file system tells of files and folders: whatever is written in them changes it. Cheaper than a digest."""
    stamps = []
    for path in files:
        for file in _walk_tree(path.absolute()):
            stat = file.stat()
            stamps.append(f"{file} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    return hashlib.sha256("\n".join(stamps).encode("utf-8", "surrogateescape")).hexdigest()


def remember_run(root: Path, request: Mapping[str, Any], run: FinishedRun) -> None:
    """Keep that the run of ``request`` ended."""
    fields = {**vars(run), "out": str(run.out)}
    write_whole(_record_path(root, request), json.dumps({"run": fields, "digest": key_of(**fields)}))


def recall_run(root: Path, request: Mapping[str, Any]) -> FinishedRun | None:
    """The run of ``request`` that ended last, whatever has changed since; None without one."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(_record_path(root, request).read_text(encoding="utf-8"))
        fields = record["run"]
        if record["digest"] == key_of(**fields):
            return FinishedRun(**{**fields, "out": Path(fields["out"])})
    return None


def digest_written(out: Path, names: Iterable[str]) -> dict[str, str]:
    """The digests of the files and folders ``names`` in ``out``."""
    return {name: digest_tree(out / name) for name in names}


def digest_tree(path: Path) -> str:
    """SHA-256 of a file, or of every file below a folder with its name, links to folders followed once each; empty where
    there is nothing."""
    if path.is_file():
        return file_digest(path)
    return (
        key_of(**{str(file.relative_to(path)): file_digest(file) for file in _walk_tree(path)}) if path.is_dir() else ""
    )


def results_used_since(root: Path, began: float) -> list[str]:
    """The results in the store that were used since ``began``: also of a run beside this one, which costs nothing."""
    entries = (path for path in root.iterdir() if (path / RECORD).is_file())
    return sorted(path.name for path in entries if path.stat().st_mtime >= began)


def code_files(path: Path) -> list[Path]:
    """A file of the user's code and every file of his that it imports, through theirs."""
    files: dict[Path, None] = {}
    waiting = [path.resolve()]
    while waiting:
        current = waiting.pop()
        if current in files or is_ours(current) or not user_code.is_the_users(current):
            continue
        files[current] = None
        waiting += user_code.imported_files(current)
    return list(files)


def _walk_tree(path: Path) -> Iterator[Path]:
    """The files at and below ``path``, in the order of their names."""
    if path.is_file():
        yield path
        return
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (file for name in sorted(names) if (file := Path(folder, name)).is_file())


def _record_path(root: Path, request: Mapping[str, Any]) -> Path:
    return root / FOLDER / f"{key_of(**request)}.json"


def _digest_installed() -> str:
    """By the folders in which installers note each package under its name and version, and when they did."""
    places = [Path(place or ".") for place in sys.path]
    notes = [note for place in places if place.is_dir() for note in place.iterdir() if note.suffix in _NOTES]
    return key_of(installed=sorted(f"{note} {note.stat().st_mtime_ns}" for note in notes))


_NOTES = (".dist-info", ".egg-info", ".egg-link")


def _describe_circumstances() -> dict[str, Any]:
    return {
        **read_environment(),
        "interpreter": [sys.version, sys.executable],
        "machine": machine_name(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _is_heeded(name)},
    }


def _is_heeded(name: str) -> bool:
    return name.startswith(_HEEDED) and name not in _SET_BY_LIBRARIES
