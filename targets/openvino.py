"""ExecuTorch with the OpenVINO backend: a .pte file for Intel processors, run here by the same runtime."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from edgewise.targets import USUAL, Artifact, Grid, Packaging, Runner, Target
from edgewise.targets._executorch import (
    edge_coverage,
    lower_to_edge,
    make_artifact,
    program_precision,
    quiet_executorch,
    write_program,
)
from edgewise.targets._program import as_captured, for_inference
from edgewise.targets._quantizer import int8_quantizer
from edgewise.targets._subsample import subsampling_as_convolution

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to OpenVINO's CPU device and write the .pte file, whole or not at all."""
    as_captured(packaging, "openvino")
    with quiet_executorch("nncf", "openvino"):
        with _without_standard_error():
            from executorch.backends.openvino.partitioner import OpenvinoPartitioner
        from executorch.exir.backend.backend_details import CompileSpec

        ready = _rounded_in_the_graph(subsampling_as_convolution(for_inference(program)))
        edge = lower_to_edge(ready, OpenvinoPartitioner([CompileSpec("device", b"CPU")]))
        facts = edge_coverage(edge)
        write_program(edge.to_executorch().buffer, path)
    return make_artifact("openvino", path, program_precision(program), facts)


def _rounded_in_the_graph(program: ExportedProgram) -> ExportedProgram:
    """``program`` with its int8 weights as floats behind a quantization, which OpenVINO reads as one fake quantization.

    Its reader skips dequantizations, and would take the bare integers for the weights.
    """
    module = program.module(check_guards=False)
    nodes = [node for node in module.graph.nodes if str(node.target).endswith("dequantize_per_channel.default")]
    for node in nodes:
        _round_in_the_graph(module, node)
    if not nodes:
        return program
    module.recompile()
    return torch.export.export(module, cast(tuple[Any, ...], program.example_inputs[0]))


def _round_in_the_graph(module: GraphModule, node: Node) -> None:
    quantized = torch.ops.quantized_decomposed
    weight, scale, zero_point, axis, _, _, dtype = node.args
    # The full range whatever the weights' width: it has the levels that OpenVINO computes in integers.
    grid = (scale, zero_point, axis, -127, 127, dtype)
    values = [getattr(module, str(cast("Node", part).target)) for part in (weight, scale, zero_point)]
    name = f"_float_{node.name}"
    module.register_buffer(name, quantized.dequantize_per_channel(*values, axis, -127, 127, dtype))
    with module.graph.inserting_before(node):
        rounded = module.graph.call_function(
            quantized.quantize_per_channel.default, (module.graph.get_attr(name), *grid)
        )
    node.args = (rounded, *grid)


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


@contextlib.contextmanager
def _without_standard_error() -> Iterator[None]:
    """What an imported tokenizer prints from C++, which nothing else can silence."""
    sys.stderr.flush()
    descriptor, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        os.close(silence)


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
