"""What has been measured: a folder with one JSON file for each cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.network import architecture
from edgewise.store.whole import write_whole
from edgewise.studies.architectures.cells import Cell
from edgewise.studies.architectures.keys import cell_key


@dataclass(frozen=True)
class Results:
    """A folder with one JSON file for each cell."""

    folder: Path

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The kept result, of whatever key, or None."""
        return _read_json(self._path(cell))

    def keep(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write a result, whole or not at all."""
        write_whole(self._path(cell), json.dumps(result, indent=1, allow_nan=False).encode())

    def pending(self, cells: Iterable[Cell], again: bool) -> Iterator[Cell]:
        """Cells without a result of the present code; ``again``: those that failed too."""
        for cell in cells:
            record = self.read(cell)
            if record is None or record.get("key") != cell_key(cell) or (again and record.get("failed")):
                yield cell

    def together(self, name: str) -> dict[str, Any] | None:
        """The kept comparison of an architecture's int8 files, of whatever key, or None."""
        return _read_json(self._together(name))

    def keep_together(self, name: str, comparison: dict[str, Any]) -> None:
        """Write it, whole or not at all."""
        write_whole(self._together(name), json.dumps(comparison, indent=1, allow_nan=False).encode())

    def costs(self, name: str) -> dict[str, Any] | None:
        """Parameters and MACs of an architecture as its present code has them, or None."""
        costs_of = _read_json(self._costs(name))
        return costs_of if costs_of and costs_of.get("key") == architecture.code_digest(name) else None

    def keep_costs(self, name: str, figures: dict[str, Any]) -> None:
        """Write them, whole or not at all."""
        document = figures | {"key": architecture.code_digest(name)}
        write_whole(self._costs(name), json.dumps(document, indent=1, allow_nan=False).encode())

    def _together(self, name: str) -> Path:
        return self.folder / f"{name}-together.json"

    def _costs(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.model}.{cell.target}.{cell.precision}.json"


def _read_json(path: Path) -> dict[str, Any] | None:
    """None for a file that is missing or broken."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
