"""ExecuTorch with the Vulkan backend: a .pte file for GPUs of Android phones and boards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Grid, Packaging, Target
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

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to Vulkan and write the .pte file, whole or not at all."""
    as_captured(packaging, "vulkan")
    # It reports through the root logger, whose level it raises as it is imported.
    with quiet_executorch(""):
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    with quiet_executorch(""):
        edge = lower_to_edge(for_executorch(program), VulkanPartitioner())
        facts = edge_coverage(edge)
        write_program(edge.to_executorch().buffer, path)
    return make_artifact("vulkan", path, program_precision(program), facts)


TARGET = Target(
    name="vulkan",
    summary="ExecuTorch with Vulkan on a GPU (Android); its runtime is not in the Python package",
    suffix=".pte",
    extra="vulkan",
    needs=("executorch",),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=int8_quantizer,
    export=export,
    load=None,
)
