"""What the result of a cell depends on: the sources that make it and measure it, and the versions behind them."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from edgewise import targets
from edgewise.network import architecture
from edgewise.store import sources
from edgewise.store.entries import key_of
from edgewise.studies.architectures import measure, network
from edgewise.studies.architectures.cells import Cell

_HERE = Path(__file__).parent
_TARGETS = Path(targets.__file__).parent
_LOOKING = ("_inside", "_xnnpack_inside", "_profile", "_executorch_profile")
"""Sources that no file and no figure depends on."""


def cell_key(cell: Cell) -> str:
    """Digest of all that a cell's result depends on, but the machine."""
    return key_of(cell=str(cell), model=_model_digests(cell.model), target=_target_digests(cell.target, cell.precision))


@cache
def _model_digests(name: str) -> list[str]:
    """Digests of an architecture's sources, and of those that measure it."""
    parts = (Path(network.__file__), Path(measure.__file__))
    ours = [sources.source_digest(path, within=_HERE) for path in parts]
    return [architecture.code_digest(name), *ours]


@cache
def _target_digests(name: str, precision: str) -> dict[str, Any]:
    """Digest of the sources that make, run and evaluate a target's files, and its backend's versions.

    The quantizer's sources count for an int8 file only; those that look inside a finished file, for none.
    """
    target = targets.get(name)
    leave_out = {*_LOOKING, *(["_int8"] if precision == "float" else [])}
    digest = sources.source_digest(Path(inspect.getfile(target.export)), within=_TARGETS, leave_out=leave_out)
    return {"code": digest, "versions": targets.versions(("torch", "torchao", *targets.packages(target)))}
