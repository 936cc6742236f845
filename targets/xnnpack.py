"""ExecuTorch with the XNNPACK backend: a .pte file for CPUs of phones, boards and desktops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from targets import USUAL, Artifact, Grid, Inside, Packaging, Target
from targets._executorch import artifact, coverage, int8_quantizer, lowered, precision, quieted, write
from targets._executorch_runtime import load
from targets._program import as_captured, for_inference
from targets._subsample import subsampling_as_convolution

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to XNNPACK and write the .pte file, whole or not at all."""
    as_captured(packaging, "xnnpack")
    with quieted():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        edge = lowered(subsampling_as_convolution(for_inference(program)), XnnpackPartitioner())
        facts = coverage(edge)
        write(edge.to_executorch().buffer, path)
    return artifact("xnnpack", path, precision(program), facts)


def _inside(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    from targets._xnnpack_inside import inside

    return inside(path, subsampling_as_convolution(for_inference(program)), images)


TARGET = Target(
    name="xnnpack",
    summary="ExecuTorch with XNNPACK on a CPU (Android, iOS, Linux)",
    suffix=".pte",
    extra="xnnpack",
    needs=("executorch",),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=int8_quantizer,
    export=export,
    load=load,
    inside=_inside,
)
