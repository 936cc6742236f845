"""ONNX Runtime in a browser (WebAssembly with SIMD): the .onnx file, run here by onnxruntime-web in node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Packaging, Runner, Target
from edgewise.targets.onnx import TARGET as ONNX

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Write ``program`` as the onnx target does; what is known of the file is known of it in ONNX Runtime.

    Raises TargetError as the onnx target does, and for what WebAssembly has no kernel of, by the name of the operator.
    """
    artifact = ONNX.export(program, path, packaging)
    load(path, 1)
    return dataclasses.replace(artifact, target="onnx_web")


def load(path: Path, threads: int) -> Runner:
    """The file in onnxruntime-web on ``threads`` threads of a node process. Raises TargetError for a file it cannot read.

    A call's time holds the way of the image to that process and of the answer back.
    """
    from edgewise.targets.onnx import load as load_natively
    from edgewise.targets.onnx_web._node import Runner as NodeRunner

    sides, kind = load_natively(path, 1).takes
    return NodeRunner(path, kind, sides, threads)


TARGET = Target(
    name="onnx_web",
    summary="ONNX Runtime in a browser (WebAssembly; run here in node)",
    suffix=".onnx",
    extra="onnx_web",
    needs=ONNX.needs,
    npm=("onnxruntime-web",),
    grids=ONNX.grids,
    quantizer=ONNX.quantizer,
    export=export,
    load=load,
    tensors=ONNX.tensors,
    precisions=("float32", "int8-weights"),
    one_size=frozenset({"int8-weights"}),
    feeds=frozenset({"normalised", "channels-last", "bytes"}),
)
