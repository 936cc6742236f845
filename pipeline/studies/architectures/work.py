"""What the worker process runs; it returns failures as values, so that none is lost between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.studies.architectures.cells import Cell


def size_up(name: str) -> dict[str, Any]:
    """Parameters and MACs of an architecture, or ``{"failed": reason}``."""
    from edgewise import models
    from edgewise.studies.architectures.network import network_costs

    try:
        return network_costs(models.get(name))
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def compare_runtimes(name: str, scratch: Path) -> dict[str, Any]:
    """The result of ``measure_together``, or ``{"failed": reason}``."""
    from edgewise.studies.architectures.together import measure_together

    try:
        return measure_together(name, scratch)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def work_on_cell(cell: Cell, scratch: Path) -> dict[str, Any]:
    """The result of ``measure_cell``, or ``{"failed": reason}``."""
    from edgewise.studies.architectures.measure import Refused, measure_cell

    try:
        return measure_cell(cell, scratch)
    except Refused as reason:
        return {"cannot": str(reason)}
    except Exception as error:
        # A backend raises what it likes; a row says so, and the other rows are measured.
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
