"""What the worker process runs; it returns failures as values, so that none is lost between processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewise.studies.architectures.cells import Cell


def size_up(name: str) -> dict[str, Any]:
    """Parameters and MACs of an architecture, or ``{"failed": reason}``."""
    from edgewise import models
    from edgewise.studies.architectures.network import network_costs

    return _name_failure(lambda: network_costs(models.get(name)))


def compare_runtimes(name: str, scratch: Path) -> dict[str, Any]:
    """The result of ``measure_together``, or ``{"failed": reason}``."""
    from edgewise.studies.architectures.together import measure_together

    return _name_failure(lambda: measure_together(name, scratch))


def work_on_cell(cell: Cell, scratch: Path) -> dict[str, Any]:
    """The result of ``measure_cell``, ``{"cannot": reason}`` or ``{"failed": reason}``."""
    from edgewise.studies.architectures.measure import Refused, measure_cell

    try:
        return _name_failure(lambda: measure_cell(cell, scratch), but=Refused)
    except Refused as reason:
        return {"cannot": str(reason)}


def _name_failure(work: Callable[[], dict[str, Any]], *, but: type[Exception] | tuple[()] = ()) -> dict[str, Any]:
    """What ``work`` gives, or the failure. A backend raises what it likes; a row says so, and the other rows are measured."""
    try:
        return work()
    except but:
        raise
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
