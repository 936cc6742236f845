"""What there is to measure: one cell for every architecture, target and precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edgewise import models, targets
from edgewise.models._published import PUBLISHED
from edgewise.targets import MissingBackend

FileKind = Literal["float", "int8"]
PRECISIONS: tuple[FileKind, ...] = get_args(FileKind)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One file to write and to measure."""

    model: str
    target: str
    precision: FileKind

    def __str__(self) -> str:
        return f"{self.model} {self.target} {self.precision}"


def plan(names: Sequence[str], wanted: Sequence[str], precisions: Sequence[FileKind]) -> list[Cell]:
    """Every cell, small architectures first; of one architecture, float ONNX first, which the others are timed against."""
    names_by_size = sorted(names or models.names(), key=_published_size)
    files = [(target, precision) for target in wanted for precision in precisions]
    files.sort(key=lambda file: (file != ("onnx", "float"), file[1] != "float"))
    return [
        Cell(model=name, target=target, precision=precision) for name in names_by_size for target, precision in files
    ]


def _published_size(name: str) -> float:
    """MACs and parameters, as far as they were published: what lowering and running take grows with both."""
    figures = PUBLISHED.get(name)
    return 0.0 if figures is None else (figures.macs or 0.0) + 20 * figures.params


def installed_targets() -> tuple[list[str], dict[str, str]]:
    """Targets whose backend is here, and for each of the others why it is not."""
    here, missing = [], {}
    for name in targets.names():
        try:
            targets.get(name)
            here.append(name)
        except MissingBackend as error:
            missing[name] = str(error)
    return here, missing
