"""ONNX Runtime's own format, .ort, for its mobile and minimal builds: a graph already fused, which loads faster.

The file is the .onnx file of the same network after ONNX Runtime's fusions. Rearrangements of weights that suit one
processor only are left to the device, so that a file written on x86 runs on Arm. ONNX Runtime writes some tables of the
format in an order that changes from call to call: one network gives files that answer alike and differ in a few bytes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Packaging, Target, TargetError
from edgewise.targets._whole import write_whole
from edgewise.targets.onnx import TARGET as ONNX
from edgewise.targets.onnx import load
from edgewise.targets.onnx._lowering import fused_copy
from edgewise.targets.onnx._profile import profile

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Write ``program``, captured at batch 1, to ``path``.

    Raises TargetError as the onnx target does, and for float16: fusing on a processor without float16 kernels widens the
    weights, and the file would hold them as float32.
    """
    if packaging.precision == "float16":
        raise TargetError("target 'ort' writes no float16 file; choices: int8, float32, int8-weights; or target onnx")
    with write_whole(path) as aside:
        model = aside.with_name("model.onnx")
        artifact = ONNX.export(program, model, packaging)
        fused_copy(model, aside)
    return dataclasses.replace(artifact, target="ort", path=path, facts={**artifact.facts, "format": "ort"})


TARGET = Target(
    name="ort",
    summary="ONNX Runtime's mobile and minimal builds (.ort)",
    suffix=".ort",
    extra="ort",
    needs=ONNX.needs,
    grids=ONNX.grids,
    quantizer=ONNX.quantizer,
    export=export,
    load=load,
    profile=profile,
    tensors=ONNX.tensors,
    sizes=ONNX.sizes,
    precisions=("float32", "int8-weights"),
    one_size=frozenset({"int8-weights"}),
    feeds=ONNX.feeds,
)
