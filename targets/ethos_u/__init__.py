"""Arm Ethos-U microcontroller NPUs: a .pte with Vela's command stream, the TOSA program it was compiled from beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Estimate, Grid, Packaging, Runner, Target
from edgewise.targets._quantizer import int8_quantizer

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def _export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    from edgewise.targets.ethos_u._lowering import export

    return export(program, path, packaging)


def _reference(path: Path) -> Runner:
    """Raises TargetError for a folder that is not whole."""
    from edgewise.targets.ethos_u._reference import Reference

    return Reference(path)


def _estimate(path: Path) -> Estimate:
    """Raises TargetError for a folder that is not whole."""
    from edgewise.targets.ethos_u._vela import estimate

    return estimate(path)


TARGET = Target(
    name="ethos_u",
    summary="Ethos-U55 NPU of microcontrollers (ExecuTorch .pte, compiled by Vela), int8 only",
    suffix=".ethosu",
    extra="ethos_u",
    needs=("executorch", "ethosu", "tosa_reference_model"),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=int8_quantizer,
    export=_export,
    load=None,
    reference=_reference,
    estimate=_estimate,
    max_undelegated=0,
    integers_only=True,
)
