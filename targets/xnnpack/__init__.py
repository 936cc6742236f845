"""ExecuTorch with the XNNPACK backend: a .pte file for CPUs of phones, boards and desktops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import (
    COMMON_OPERATORS,
    EVERY_SIZE,
    GATES,
    PRODUCTS,
    USUAL,
    Artifact,
    Grid,
    Inside,
    Packaging,
    Precision,
    Target,
)
from edgewise.targets._executorch import (
    edge_coverage,
    for_executorch,
    lower_to_edge,
    make_artifact,
    planned_bytes,
    quiet_executorch,
    write_program,
)
from edgewise.targets._executorch_profile import profile
from edgewise.targets._executorch_runtime import load
from edgewise.targets._float16 import with_float16
from edgewise.targets._grouped import merge_narrow_groups
from edgewise.targets._plain_operators import XNNPACK
from edgewise.targets._program import chosen_precision, fitting_sizes
from edgewise.targets._quantizer import int8_quantizer
from edgewise.targets._rewrite import HARD_SIGMOID

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
"""Of float networks, the usual one first. XNNPACK's convolutions take no int8 weights beside float activations."""


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to XNNPACK and write the .pte file, whole or not at all."""
    fitting_sizes(packaging, "xnnpack", TARGET.sizes)
    precision = chosen_precision(program, packaging, "xnnpack", PRECISIONS)
    with quiet_executorch():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        program = _prepare_program(program)
        if precision == "float16":
            program = with_float16(program, packaging)
        edge = lower_to_edge(program, XnnpackPartitioner())
        facts = edge_coverage(edge)
        manager = edge.to_executorch()
        write_program(manager.buffer, path)
    return make_artifact("xnnpack", path, precision, facts | {"planned_bytes": planned_bytes(manager)})


def _prepare_program(program: ExportedProgram) -> ExportedProgram:
    """``program`` in the operators that the backend takes."""
    return for_executorch(merge_narrow_groups(program), {**HARD_SIGMOID, **XNNPACK})


def _inside(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    from edgewise.targets.xnnpack._inside import inside_values

    return inside_values(path, _prepare_program(program), images)


TARGET = Target(
    name="xnnpack",
    summary="ExecuTorch with XNNPACK on a CPU (Android, iOS, Linux)",
    suffix=".pte",
    extra="xnnpack",
    needs=("executorch",),
    grids=tuple(Grid(weight_bits=bits, operators=COMMON_OPERATORS | GATES | PRODUCTS) for bits in (8, 7)),
    quantizer=int8_quantizer,
    export=export,
    load=load,
    profile=profile,
    precisions=PRECISIONS,
    one_size=frozenset({"float16"}),
    inside=_inside,
    # A .pte file is planned for the largest image and runs smaller ones; it has no list of sizes, so it takes all between.
    sizes=EVERY_SIZE,
    feeds=frozenset({"normalised", "channels-last", "bytes"}),
)
