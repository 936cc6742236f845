"""LiteRT: a .tflite file for Android, iOS and Linux, run here by LiteRT's own interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import COMMON_OPERATORS, GATES, PRODUCTS, USUAL, Artifact, Grid, Inside, Packaging, Runner, Target
from edgewise.targets._quantizer import int8_quantizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def _export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    from edgewise.targets.litert._lowering import export

    return export(program, path, packaging)


def _load(path: Path, threads: int) -> Runner:
    """Raises TargetError for a file that LiteRT cannot read."""
    from edgewise.targets.litert._runtime import load

    return load(path, threads)


def _name_tensors(path: Path) -> tuple[str, str]:
    """Raises TargetError for a file that LiteRT cannot read."""
    from edgewise.targets.litert._runtime import name_tensors

    return name_tensors(path)


def _inside(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    """Raises TargetError for a file that LiteRT cannot read."""
    from edgewise.targets.litert._inside import inside_values
    from edgewise.targets.litert._lowering import prepare_program

    return inside_values(path, prepare_program(program), images)


OPERATORS = (COMMON_OPERATORS | GATES | PRODUCTS) - {"conv_transpose"}
"""The converter loses the quantization of a transposed convolution's weights, and leaves it in float."""

TARGET = Target(
    name="litert",
    summary="LiteRT (TensorFlow Lite) on a CPU (Android, iOS, Linux)",
    suffix=".tflite",
    extra="litert",
    needs=("litert_torch", "litert_converter", "ai_edge_litert", "ai_edge_quantizer"),
    grids=tuple(Grid(weight_bits=bits, operators=OPERATORS) for bits in (8, 7)),
    quantizer=int8_quantizer,
    export=_export,
    load=_load,
    tensors=_name_tensors,
    precisions=("float32", "float16", "int8-weights"),
    one_size=frozenset({"float16", "int8-weights"}),
    inside=_inside,
    feeds=frozenset({"normalised", "channels-last", "bytes"}),
    max_undelegated=0,
)
