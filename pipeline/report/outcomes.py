"""Which class every row of a run gave to every test image: what a later comparison pairs, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewise.errors import RequestError
from edgewise.store.whole import write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgewise.report.rows import Row


FILE = "outcomes.safetensors"
NO_CLASS = -1
"""Given where an answer is not all finite numbers."""


@dataclass(kw_only=True)
class Outcomes:
    """The classes given to one test set."""

    data: str
    """The data set's digest."""
    labels: NDArray[np.int32]
    """[n], the images' own classes."""
    given: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    """Row, as ``key_of_row`` names it -> the classes it gave, [n]."""

    def add(self, row: Row, answers: NDArray[np.float32]) -> None:
        """Keep what a row's network or file answered, [n, classes]."""
        finite = np.isfinite(answers).all(axis=1)
        self.given[key_of_row(row)] = np.where(finite, answers.argmax(axis=1), NO_CLASS).astype(np.int32)

    def right(self, key: str) -> NDArray[np.bool_]:
        """Which images a row told right, [n]."""
        hits: NDArray[np.bool_] = self.given[key] == self.labels
        return hits

    def write(self, folder: Path) -> None:
        """Write ``folder/outcomes.safetensors``, whole or not at all."""
        from safetensors.numpy import save

        tensors = {"labels": self.labels, **{f"row {key}": classes for key, classes in self.given.items()}}
        write_whole(folder / FILE, save(tensors, metadata={"data": self.data}))


def key_of_row(row: Row) -> str:
    """The name of a row among its run's: a file by its target and precision, a step by its label."""
    if row.step == "artifact":
        return f"{row.target} {row.precision or 'file'}"
    return row.name or row.step


def read_outcomes(folder: Path) -> Outcomes | None:
    """Those of the run in ``folder``; None where it kept none. Raises RequestError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            tensors: Mapping[str, NDArray[np.int32]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            data = (file.metadata() or {})["data"]
        answers = {name.removeprefix("row "): classes for name, classes in tensors.items() if name != "labels"}
        return Outcomes(data=data, labels=tensors["labels"], given=answers)
    except (OSError, KeyError, SafetensorError) as error:
        raise RequestError(f"cannot read {path}: {error}; run the recipe again to renew it") from error
