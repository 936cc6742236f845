"""From an exported program to a Core ML package.

float16 by default: it is Core ML's own default and the only float type the Neural Engine computes in; a float32 program
keeps a device to its CPU and GPU. Input and output are float32, so that a caller need not convert. An int8 file is the
same float16 program with iOS 17's quantize and dequantize operators around each layer, which Core ML executes in int8
where the device can. Scales and biases are float16 there (11 significant bits), as the quantized network's own are. The
image is quantized, and the logits dequantized, in float32: a float16 image would land one step off now and then.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from edgewise.targets import EVERY_SIZE, Artifact, Packaging, Precision, TargetError
from edgewise.targets._coverage import coverage_shares
from edgewise.targets._int8_weights import with_int8_weights
from edgewise.targets._program import chosen_precision, fitting_sizes, for_inference, minimum_version
from edgewise.targets._rewrite import insert_call, rewrite_program
from edgewise.targets.coreml import _input, _mil, _package, _storage
from edgewise.targets.coreml._coremltools import convert_silently
from edgewise.targets.coreml._islands import float_islands, integer_work
from edgewise.targets.coreml._mil import Operation, Program
from edgewise.targets.coreml._precisions import DEPLOYMENT_TARGETS, PRECISIONS

if TYPE_CHECKING:
    from torch.export import ExportedProgram


OUTPUT = "logits"
"""The output's name in every package written here."""

SMALLEST_SCALE = 2.0**-17
"""Below 2^-14 float16 keeps steps of 2^-24: from here on a scale is off by at most 2^-8, half a step at 127."""

_aten = torch.ops.aten
_MAX_POOLS = frozenset({_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default})


"""The oldest systems a package can be written for; int8 activations need the second."""

"""Of float networks, the usual one first; a quantized network gives int8."""

_PREPARING = frozenset({"quantize", "sub", "mul", "add", "cast"})
"""Operators that may stand between an image and the first layer."""

_RESCALING = "common::distributive_quantized_binary_op_scale_normalization"
"""coremltools' pass that gives quantized additions other scales than those the network was trained with."""


def export(program: ExportedProgram, path: Path, packaging: Packaging) -> Artifact:
    """Write ``program`` (batch 1; float, or quantized with quantize/dequantize nodes) as an ML Program.

    Raises TargetError for a program captured in training mode, for one whose scales float16 cannot hold, and for a
    packaging that Core ML does not have.
    """
    fitting_sizes(packaging, "coreml", EVERY_SIZE)
    packaging = dataclasses.replace(packaging, precision=chosen_precision(program, packaging, "coreml", PRECISIONS))
    system = _system(packaging)
    specification, weights = _convert_program(program, packaging, system)
    with _package.stage_package(path, specification, weights) as folder:
        package = _mil.read_program(folder)
        for operation in package.operations:
            _check_scale(operation)
    assert packaging.precision is not None
    return Artifact(
        target="coreml",
        path=path,
        precision=packaging.precision,
        facts=_package_facts(package, packaging, system),
    )


def _system(packaging: Packaging) -> str:
    """The deployment target. Raises TargetError for one that does not have what the packaging wants."""
    system = minimum_version(packaging, "coreml", DEPLOYMENT_TARGETS, "iOS17")
    if packaging.precision == "int8" and system == "iOS16":
        raise TargetError("target 'coreml': int8 activations came with iOS17; choose it, or leave quantize out")
    return system


def _convert_program(program: ExportedProgram, packaging: Packaging, system: str) -> tuple[bytes, bytes]:
    """The specification and the weights' file, the same bytes for the same program."""
    image = _input.takes_bytes(program)
    program = for_inference(program)
    program = _input.from_pixels(program) if image else program
    if packaging.precision == "int8-weights":
        program = with_int8_weights(program, packaging)
    with convert_silently() as coremltools:
        model = coremltools.convert(
            _with_strides(_in_known_operators(_with_single_numbers(program))),
            inputs=_input.inputs(coremltools, program, packaging, image),
            outputs=[coremltools.TensorType(name=OUTPUT, dtype=float)],
            classifier_config=_input.classes(coremltools, program, packaging),
            minimum_deployment_target=coremltools.target[system],
            compute_precision=_compute_precision(coremltools, packaging.precision),
            pass_pipeline=_passes(coremltools),
            skip_model_load=True,
        )
        model = _storage.compress_weights(model, packaging)
        specification = model.get_spec()
        # The converter's own notes hold the day of conversion and the build of torch.
        specification.description.metadata.userDefined.clear()
        specification.description.metadata.userDefined.update(_input.metadata(packaging))
        specification.mlProgram.attributes.pop("buildInfo", None)
        return specification.SerializeToString(deterministic=True), _storage.weights_of(model)


def _with_single_numbers(program: ExportedProgram) -> ExportedProgram:
    """``program`` with each quantized constant of one element, or what is computed of such, as the number it stands for.

    coremltools 9.0 subtracts its zero point in int8, where 127 − (−128) is −1.
    """
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    constants = {place: tensors[name] for place, name in names.items()}

    def as_number(graph: Graph, node: Node) -> Node | None:
        held = _constant_value(node, constants)
        return None if held is None else insert_call(graph, _aten.full.default, list(held.shape), float(held))

    return rewrite_program(program, {torch.ops.quantized_decomposed.dequantize_per_tensor.default: as_number})


def _constant_value(node: Node, constants: Mapping[str, Any]) -> Tensor | None:
    """What a node of one element comes to where no image enters it; None where one does, or it has more elements."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.numel() != 1:
        return None
    if node.op == "placeholder":
        found: Tensor | None = constants.get(node.name)
        return found
    known = {source: _constant_value(source, constants) for source in node.all_input_nodes}
    if node.op != "call_function" or any(tensor is None for tensor in known.values()):
        return None
    with torch.no_grad():
        computed: Tensor = node.target(*map_arg(node.args, known.get), **map_arg(node.kwargs, known.get))  # type: ignore[operator]
    return computed


def _in_known_operators(program: ExportedProgram) -> ExportedProgram:
    """``program`` with each operator that coremltools has no translation of taken apart, as far as torch can."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    apart = torch.export.default_decompositions()
    for _ in range(_ROUNDS):
        unknown = {
            node.target: apart[node.target]
            for node in program.graph.nodes
            if node.target in apart
            and (node.target in _UNLIKE or _TORCH_OPS_REGISTRY.get_func(str(node.target)) is None)
        }
        program = program.run_decompositions(unknown)
        if not unknown:
            break
    return program


_ROUNDS = 4
"""An operator comes apart into others that may have to come apart."""
_UNLIKE = frozenset({_aten.rms_norm.default})
"""coremltools 9.0 has a translation that does not take what torch gives."""


def _passes(coremltools: ModuleType) -> Any:
    """coremltools' own passes, but for those that change a quantized network's numbers."""
    passes = copy.deepcopy(coremltools.PassPipeline.DEFAULT)
    passes.remove_passes({_RESCALING})
    return passes


def _compute_precision(coremltools: ModuleType, precision: Precision | None) -> Any:
    if precision == "float32":
        return coremltools.precision.FLOAT32
    if precision == "int8":
        return coremltools.transform.FP16ComputePrecision(op_selector=_is_inside)
    return coremltools.precision.FLOAT16


def _is_inside(operation: Any) -> bool:
    """False for the operators that prepare and quantize the image and that dequantize the logits."""
    if operation.op_type in _PREPARING:
        return not _of_the_image(operation)
    return operation.op_type != "dequantize" or operation.outputs[0] not in operation.enclosing_block.outputs


def _of_the_image(operation: Any) -> bool:
    """Whether it computes from the program's input with nothing but preparing operators between."""
    source = operation.inputs.get("input") or operation.inputs.get("x")
    if source is None or source.op is None:
        return source is not None
    return source.op.op_type in _PREPARING - {"quantize"} and _of_the_image(source.op)


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


def _package_facts(written: Program, packaging: Packaging, system: str) -> Mapping[str, Any]:
    counts = Counter(operation.type for operation in written.operations)
    facts: dict[str, Any] = {
        "deployment_target": system,
        "specification_version": written.specification_version,
        "compute_precision": "float32" if packaging.precision == "float32" else "float16",
        "operators": dict(sorted(counts.items())),
        "placement": "decided by Core ML when the device loads the file",
    }
    if packaging.precision == "palette":
        facts["palette_bits"] = packaging.palette_bits
    if packaging.precision == "int8":
        islands = Counter(operation.type for operation in float_islands(written))
        facts |= {
            "quantize_pairs": min(counts["quantize"], counts["dequantize"]),
            "float_convolutions": islands["conv"] + islands["conv_transpose"],
            "float_operators": dict(sorted(islands.items())),
            "coverage": coverage_shares(integer_work(written)),
        }
    return facts
