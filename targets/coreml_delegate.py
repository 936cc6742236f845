"""ExecuTorch with the Core ML backend: a .pte that carries a Core ML package; evaluated by a reference off macOS."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.targets import USUAL, Artifact, Grid, Packaging, Runner, Target, TargetError
from edgewise.targets._executorch import (
    edge_coverage,
    for_executorch,
    lower_to_edge,
    make_artifact,
    quiet_executorch,
    write_program,
)
from edgewise.targets._executorch_runtime import load
from edgewise.targets._program import as_captured, is_quantized
from edgewise.targets._quantizer import int8_quantizer

if TYPE_CHECKING:
    from torch.export import ExportedProgram


_PACKAGE = "lowered_module/model.mlpackage"
"""Where a delegate's data, unfolded, holds the package."""
_LOGGERS = tuple(
    f"executorch.backends.apple.coreml.{module}"
    for module in ("compiler.coreml_preprocess", "partition.coreml_partitioner")
)


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to Core ML (iOS 17, float16) and write the .pte file, whole or not at all."""
    as_captured(packaging, "coreml_delegate")
    from edgewise.targets.coreml._coremltools import convert_silently

    with quiet_executorch(), convert_silently() as coremltools:
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    # They set their own levels as they are imported.
    with quiet_executorch(*_LOGGERS), convert_silently():
        specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=coremltools.target.iOS17)
        ready = for_executorch(program)
        edge = lower_to_edge(ready, CoreMLPartitioner(compile_specs=specs))
        facts = edge_coverage(edge)
        write_program(edge.to_executorch().buffer, path)
    return make_artifact("coreml_delegate", path, "int8" if is_quantized(program) else "float16", facts)


def reference(path: Path) -> Runner:
    """The carried package's own instructions, evaluated. Raises TargetError where they are not the whole network."""
    from edgewise.targets.coreml import _mil

    with tempfile.TemporaryDirectory() as folder:
        read = _mil.read_program(_unfold_package(path, Path(folder)))
        return _mil.Reference(dataclasses.replace(read, path=path))


def _unfold_package(path: Path, folder: Path) -> Path:
    """The package that the file carries, written into ``folder``."""
    data = _delegate_data(path)
    with quiet_executorch():
        from executorch.backends.apple.coreml import executorchcoreml
    if not executorchcoreml.unflatten_directory_contents(data, str(folder)):
        raise TargetError(f"{path}: wanted a Core ML package inside, found {len(data)} bytes of another kind")
    if any(not place.resolve().is_relative_to(folder.resolve()) for place in folder.rglob("*")):
        raise TargetError(f"{path}: its package names files outside itself")
    return folder / _PACKAGE


def _delegate_data(path: Path) -> bytes:
    """What Core ML is given, where the file's only instruction is to hand everything to it."""
    program = _read_delegate(path)
    plan = program.execution_plan[0]
    steps = [type(step.instr_args).__name__ for chain in plan.chains for step in chain.instructions]
    if steps != ["DelegateCall"] or [delegate.id for delegate in plan.delegates] != ["CoreMLBackend"]:
        raise TargetError(
            f"{path}: the reference evaluates a network that Core ML has in one piece, found {', '.join(steps)}"
        )
    return bytes(program.backend_delegate_data[plan.delegates[0].processed.index].data)


def _read_delegate(path: Path) -> Any:
    with quiet_executorch():
        from executorch.exir._serialize._program import deserialize_pte_binary
    try:
        return deserialize_pte_binary(path.read_bytes()).program
    except OSError as error:
        raise TargetError(f"wanted an ExecuTorch program at {path}, found: {error.strerror}; export it") from error
    except Exception as error:  # whatever its own reader trips over in a damaged file
        raise TargetError(
            f"wanted an ExecuTorch program at {path}, found {type(error).__name__}: {error}; export it again"
        ) from error


TARGET = Target(
    name="coreml_delegate",
    summary="ExecuTorch .pte that carries a Core ML package (iOS 17 and later), float16 or int8",
    suffix=".pte",
    extra="coreml_delegate",
    needs=("executorch", "coremltools"),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=int8_quantizer,
    export=export,
    load=load if sys.platform == "darwin" else None,
    reference=reference,
)
