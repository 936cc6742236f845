"""From an exported program to a Core ML package.

float16 throughout: it is Core ML's own default and the only float type the Neural Engine computes in; a float32 program
keeps a device to its CPU and GPU. Input and output are float32, so that a caller need not convert. An int8 file is the
same float16 program with iOS 17's quantize and dequantize operators around each layer, which Core ML executes in int8
where the device can. Scales and biases are float16 there (11 significant bits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from targets import Artifact, Packaging, TargetError
from targets._program import as_captured, for_inference

from . import _mil, _package
from ._coremltools import converting
from ._islands import float_islands
from ._mil import Operation, Program

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OUTPUT = "logits"
"""The output's name in every package written here."""

SMALLEST_SCALE = 2.0**-17
"""Below 2^-14 float16 keeps steps of 2^-24: from here on a scale is off by at most 2^-8, half a step at 127."""

_aten = torch.ops.aten
_MAX_POOLS = frozenset({_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default})


def export(program: ExportedProgram, path: Path, packaging: Packaging) -> Artifact:
    """Write ``program`` (batch 1; float, or quantized with quantize/dequantize nodes) as an ML Program for iOS 17.

    Raises TargetError for a program captured in training mode, and for one whose scales float16 cannot hold.
    """
    as_captured(packaging, "coreml")
    quantized = any("quantized_decomposed" in str(node.target) for node in program.graph.nodes)
    specification, weights = _convert(program)
    with _package.staged(path, specification, weights) as folder:
        written = _mil.read(folder)
        for operation in written.operations:
            _check_scale(operation)
    return Artifact(
        target="coreml",
        path=path,
        precision="int8" if quantized else "float16",
        facts=_facts(written, quantized),
    )


def _convert(program: ExportedProgram) -> tuple[bytes, bytes]:
    """The specification and the weights' file, the same bytes for the same program."""
    with converting() as coremltools:
        model = coremltools.convert(
            _with_strides(for_inference(program).run_decompositions({})),
            outputs=[coremltools.TensorType(name=OUTPUT, dtype=float)],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT16,
            skip_model_load=True,
        )
        specification = model.get_spec()
        # The converter's own notes hold the day of conversion and the build of torch.
        specification.description.metadata.userDefined.clear()
        specification.mlProgram.attributes.pop("buildInfo", None)
        weights = Path(model.weights_dir, "weight.bin")
        content = weights.read_bytes() if weights.is_file() else b""
        return specification.SerializeToString(deterministic=True), content


def _with_strides(program: ExportedProgram) -> ExportedProgram:
    """Write out the stride of max pooling where the program leaves it out; coremltools 9.0 needs it there."""
    for node in program.graph.nodes:
        if node.target in _MAX_POOLS and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
    return program


def _check_scale(operation: Operation) -> None:
    """Raises TargetError for a scale that float16 holds too coarsely; coremltools moves such values without a word."""
    scale = operation.arguments.get("scale")
    if not isinstance(scale, float | Tensor):
        return
    scales = torch.as_tensor(scale)
    if not bool((torch.isfinite(scales) & (scales >= SMALLEST_SCALE)).all()):
        raise TargetError(
            f"{operation.type} {operation.results[0].name!r}: wanted scales of at least {SMALLEST_SCALE:.2g}, within "
            f"float16's precise range, found {float(scales.min()):.2g}. Quantize again with a larger smallest scale"
        )


def _facts(written: Program, quantized: bool) -> Mapping[str, Any]:
    counts = Counter(operation.type for operation in written.operations)
    facts: dict[str, Any] = {
        "deployment_target": "iOS17",
        "specification_version": written.specification_version,
        "compute_precision": "float16",
        "operators": dict(sorted(counts.items())),
        "placement": "decided by Core ML when the device loads the file",
    }
    if quantized:
        islands = Counter(operation.type for operation in float_islands(written))
        facts |= {
            "quantize_pairs": min(counts["quantize"], counts["dequantize"]),
            "float_convolutions": islands["conv"] + islands["conv_transpose"],
            "float_operators": dict(sorted(islands.items())),
        }
    return facts
