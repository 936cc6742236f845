"""The folder a Core ML package is: Manifest.json, the model's specification, and its weights.

``Manifest.json`` names the items by identifier; each item's path is relative to ``Data/``. coremltools draws the
identifiers at random; here they follow from the content, so that one program always gives the same bytes.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgewise.targets import TargetError

_FORMAT = "1.0.0"
_AUTHOR = "com.apple.CoreML"
_MODEL = "model.mlmodel"
_WEIGHTS = "weights"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://developer.apple.com/documentation/coreml/mlpackage")


@dataclass(frozen=True)
class Package:
    """A package's parts, found and confined to its folder."""

    root: Path
    model: Path
    """The specification's file; ``@model_path`` of the weights' references is its folder."""

    def resolve(self, reference: str) -> Path:
        """The file that a weight's reference ``@model_path/weights/weight.bin`` means. Raises TargetError."""
        prefix = "@model_path/"
        if not reference.startswith(prefix):
            raise TargetError(f"{self.root}: a weight's file was to start with {prefix!r}, found {reference!r}")
        return _path_inside(self.root, self.model.parent / reference.removeprefix(prefix))


def _path_inside(root: Path, path: Path) -> Path:
    """``path``, resolved, where it is a file inside ``root``; raises TargetError otherwise."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise TargetError(f"{root}: every file was to lie inside the package, found a reference to {path}")
    if not resolved.is_file():
        raise TargetError(f"{root}: the package is incomplete, {path.relative_to(root)} is missing. Export it again")
    return resolved


def read(root: Path) -> Package:
    """Find the package's parts through its manifest. Raises TargetError for one that is not whole."""
    manifest = _path_inside(root, root / "Manifest.json")
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        path = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{manifest}: wanted a manifest with a root model's path, found {error!r}") from error
    if not isinstance(path, str):
        raise TargetError(f"{manifest}: wanted the root model's path, found {path!r}")
    return Package(root, _path_inside(root, root / "Data" / path))


def _manifest_item(name: str, description: str, content: bytes) -> tuple[str, dict[str, str]]:
    identifier = str(uuid.uuid5(_NAMESPACE, f"{name}:{content.hex()}"))
    return identifier, {
        "author": _AUTHOR,
        "description": description,
        "name": name,
        "path": f"{_AUTHOR}/{name}",
    }


def _fill_folder(folder: Path, specification: bytes, weights: bytes) -> None:
    data = folder / "Data" / _AUTHOR
    (data / _WEIGHTS).mkdir(parents=True)
    (data / _MODEL).write_bytes(specification)
    (data / _WEIGHTS / "weight.bin").write_bytes(weights)
    root, model = _manifest_item(_MODEL, "CoreML Model Specification", specification)
    other, blobs = _manifest_item(_WEIGHTS, "CoreML Model Weights", weights)
    manifest = {
        "fileFormatVersion": _FORMAT,
        "itemInfoEntries": {root: model, other: blobs},
        "rootModelIdentifier": root,
    }
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def stage_package(root: Path, specification: bytes, weights: bytes) -> Iterator[Path]:
    """Write a package beside ``root`` and yield its folder for inspection; it becomes ``root`` if the block succeeds.

    ``root`` is written whole or not at all; a package that is there already is replaced.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        new.mkdir()
        _fill_folder(new, specification, weights)
        yield new
        if root.is_dir():
            root.rename(old)
        else:
            root.unlink(missing_ok=True)
        new.rename(root)
