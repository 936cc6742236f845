"""What there is to measure: one cell for every architecture, target and precision, and what each depends on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from edgewise import models, targets
from edgewise.models._published import PUBLISHED
from edgewise.network import architecture
from edgewise.store import sources
from edgewise.store.entries import key_of, write_whole
from edgewise.targets import MissingBackend

Precision = Literal["float", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_HERE = Path(__file__).parent
_TARGETS = Path(targets.__file__).parent
_LOOKING = ("_onnx_inside", "_xnnpack_inside", "_inside", "_onnx_profile", "_executorch_profile")
"""Sources that no file and no figure depends on."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One file to write and to measure."""

    model: str
    target: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.model} {self.target} {self.precision}"

    @property
    def key(self) -> str:
        """Digest of all that the result depends on, but the machine."""
        return key_of(cell=str(self), model=_model(self.model), target=_target(self.target, self.precision))


@cache
def _model(name: str) -> list[str]:
    """Digests of an architecture's sources, and of those that measure it."""
    ours = [sources.source_digest(_HERE / file, within=_HERE) for file in ("network.py", "measure.py")]
    return [architecture.code_digest(name), *ours]


@cache
def _target(name: str, precision: Precision) -> dict[str, Any]:
    """Digest of the sources that make, run and evaluate a target's files, and its backend's versions.

    The quantizer's sources count for an int8 file only; those that look inside a finished file, for none.
    """
    target = targets.get(name)
    leave_out = {*_LOOKING, *(["_int8"] if precision == "float" else [])}
    digest = sources.source_digest(Path(inspect.getfile(target.export)), within=_TARGETS, leave_out=leave_out)
    return {"code": digest, "versions": targets.versions(("torch", "torchao", *targets.packages(target)))}


def plan(names: Sequence[str], wanted: Sequence[str], precisions: Sequence[Precision]) -> list[Cell]:
    """Every cell, small architectures first; of one architecture, float ONNX first, which the others are timed against."""
    chosen = sorted(names or models.names(), key=_size)
    files = [(target, precision) for target in wanted for precision in precisions]
    files.sort(key=lambda file: (file != ("onnx", "float"), file[1] != "float"))
    return [Cell(model=name, target=target, precision=precision) for name in chosen for target, precision in files]


def _size(name: str) -> float:
    """MACs and parameters, as far as they were published: what lowering and running take grows with both."""
    published = PUBLISHED.get(name)
    return 0.0 if published is None else (published.macs or 0.0) + 20 * published.params


def installed() -> tuple[list[str], dict[str, str]]:
    """Targets whose backend is here, and for each of the others why it is not."""
    here, missing = [], {}
    for name in targets.names():
        try:
            targets.get(name)
            here.append(name)
        except MissingBackend as error:
            missing[name] = str(error)
    return here, missing


@dataclass(frozen=True)
class Results:
    """A folder with one JSON file for each cell."""

    folder: Path

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The kept result, of whatever key, or None."""
        path = self._path(cell)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def keep(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write a result, whole or not at all."""
        write_whole(self._path(cell), json.dumps(result, indent=1, allow_nan=False).encode())

    def pending(self, cells: Iterable[Cell], again: bool) -> Iterator[Cell]:
        """Cells without a result of the present code; ``again``: those that failed too."""
        for cell in cells:
            kept = self.read(cell)
            if kept is None or kept.get("key") != cell.key or (again and kept.get("failed")):
                yield cell

    def costs(self, name: str) -> dict[str, Any] | None:
        """Parameters and MACs of an architecture as its present code has them, or None."""
        try:
            found: dict[str, Any] = json.loads(self._costs(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("key") == architecture.code_digest(name) else None

    def keep_costs(self, name: str, found: dict[str, Any]) -> None:
        """Write them, whole or not at all."""
        document = found | {"key": architecture.code_digest(name)}
        write_whole(self._costs(name), json.dumps(document, indent=1, allow_nan=False).encode())

    def _costs(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.model}.{cell.target}.{cell.precision}.json"
