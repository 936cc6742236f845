"""The bundle's own contents: the manifest, the files, the images, each held against its digest before it is used."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
LABELS, IMAGES = "slice/labels.u16", "slice/images.u8"


class BundleError(Exception):
    """The bundle is not what it was when it was written; the message says what to do."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


class Contents:
    """A bundle that is whole. Raises BundleError for one that is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.digest = file_digest(path)
            self.manifest: dict[str, Any] = json.loads(self.read(MANIFEST).decode())
            self._check()
        except (OSError, ValueError, KeyError, NotImplementedError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} is not a whole bundle ({error}): copy it here again") from error

    def _check(self) -> None:
        for name, digest in self.manifest["entries"].items():
            if hashlib.sha256(self.read(name)).hexdigest() != digest:
                raise ValueError(f"{name} in it differs from what was written")
        unlisted = [name for file in self.files for name in file["entries"] if name not in self.manifest["entries"]]
        if unlisted:
            raise ValueError(f"its manifest holds no digest of {unlisted[0]}")

    def read(self, name: str) -> bytes:
        """One entry. The file is opened anew: forks share an open one's place in it, and each moves it for the others."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    @property
    def files(self) -> list[dict[str, Any]]:
        """What the manifest says of each file to be measured."""
        files: list[dict[str, Any]] = self.manifest["files"]
        return files

    def unpack(self, file: dict[str, Any], folder: Path) -> Path:
        """Lay a file, with the weights beside it, into ``folder``; returns its path."""
        for name in file["entries"]:
            place = folder / name
            if not place.resolve().is_relative_to(folder.resolve()):
                raise BundleError(f"{self.path} would write a file outside its own folder: {name!r}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.read(name))
        return folder / str(file["path"])

    def slice(self) -> np.ndarray[Any, Any]:
        """The labelled images, uint8 [n, C, H, W]."""
        slice_entry = self.manifest["slice"]
        return np.frombuffer(self.read(IMAGES), np.uint8).reshape([slice_entry["count"], *slice_entry["shape"]])

    def labels(self) -> np.ndarray[Any, Any]:
        """The images' classes, [n]."""
        return np.frombuffer(self.read(LABELS), "<u2").astype(np.int64)

    def golden(self, file: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The file's golden images and answers; empty where it has none."""
        if file["golden"] is None:
            return {}
        return tensors(self.read(file["golden"]["entry"]))


_KINDS = {"F32": "<f4", "U8": "u1", "I64": "<i8"}


def tensors(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file, by name."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size].decode())
    head.pop("__metadata__", None)
    tensors_by_name = {}
    for name, entry in head.items():
        low, high = entry["data_offsets"]
        values = np.frombuffer(content[8 + size + low : 8 + size + high], _KINDS[entry["dtype"]])
        tensors_by_name[name] = values.reshape(entry["shape"])
    return tensors_by_name


def on_disk_digest(path: Path) -> str:
    """SHA-256 of a written file as the project counts it: its own; with weights beside it, or a folder, over all."""
    beside = path.with_name(path.name + ".data")
    if not beside.is_file():
        return _root_digest(path)
    return _digest_of({root.name: _root_digest(root) for root in (path, beside)})


def _root_digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    files = (place for place in path.rglob("*") if place.is_file())
    return _digest_of({place.relative_to(path).as_posix(): file_digest(place) for place in files})


def _digest_of(parts: dict[str, str]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
