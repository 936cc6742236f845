"""A written table as results: a fresh clone measures what the table in it does not show yet, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgewise import models
from edgewise.network import architecture
from edgewise.studies.architectures.cells import Cell
from edgewise.studies.architectures.results import Results

_ADDED = ("model", "target", "precision", "current", "published", "key")
"""What the table adds to a result, and the key, which decides whether it is still one of the present code."""


def adopt_results(document: Path, results: Results) -> int:
    """Keep the results of ``document`` (architectures.json) that are missing; returns how many files' there were."""
    try:
        content: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    registered_names = models.names()
    for row in (row for row in content["models"] if row["model"] in registered_names):
        current = row.get("key") == architecture.code_digest(row["model"])
        if current and results.costs(row["model"]) is None:
            results.keep_costs(row["model"], _measured_fields(row))
    for row in (row for row in content.get("together", ()) if row["model"] in registered_names):
        if results.together(row["model"]) is None:
            results.keep_together(row["model"], _measured_fields(row) | {"key": row["key"]})
    rows = [
        (Cell(model=r["model"], target=r["target"], precision=r["precision"]), r)
        for r in content["files"]
        if r["model"] in registered_names
    ]
    missing = [(cell, row) for cell, row in rows if "key" in row and results.read(cell) is None]
    for cell, row in missing:
        results.keep(cell, _measured_fields(row) | {"key": row["key"]})
    return len(missing)


def _measured_fields(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _ADDED}
