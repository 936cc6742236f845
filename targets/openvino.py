"""ExecuTorch with the OpenVINO backend: a .pte file for Intel processors, run here by the same runtime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Grid, Packaging, Runner, Target
from edgewise.targets._executorch import (
    edge_coverage,
    for_executorch,
    lower_to_edge,
    make_artifact,
    program_precision,
    quiet_executorch,
    write_program,
)
from edgewise.targets._program import as_captured
from edgewise.targets._quantizer import int8_quantizer
from edgewise.targets._quiet import without_standard_error
from edgewise.targets._rounded import rounded_in_the_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to OpenVINO's CPU device and write the .pte file, whole or not at all."""
    as_captured(packaging, "openvino")
    with quiet_executorch("nncf", "openvino"):
        with without_standard_error():
            from executorch.backends.openvino.partitioner import OpenvinoPartitioner
        from executorch.exir.backend.backend_details import CompileSpec

        ready = rounded_in_the_graph(for_executorch(program))
        edge = lower_to_edge(ready, OpenvinoPartitioner([CompileSpec("device", b"CPU")]))
        facts = edge_coverage(edge)
        write_program(edge.to_executorch().buffer, path)
    return make_artifact("openvino", path, program_precision(program), facts)


def load(path: Path, threads: int) -> Runner:
    """The file in ExecuTorch's runtime with OpenVINO's. Raises TargetError for a file they cannot read.

    OpenVINO takes one thread for each core it is allowed at this moment, and offers no other way to say how many here.
    """
    from edgewise.targets._executorch_runtime import load as load_program

    with _allowed_cores(threads):
        return load_program(path, threads)


@contextlib.contextmanager
def _allowed_cores(count: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


TARGET = Target(
    name="openvino",
    summary="ExecuTorch with OpenVINO on an Intel processor (Linux)",
    suffix=".pte",
    extra="openvino",
    needs=("executorch", "openvino", "nncf"),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=int8_quantizer,
    export=export,
    load=load,
)
