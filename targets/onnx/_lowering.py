"""ONNX Runtime on a CPU: an .onnx file whose int8 convolutions all fuse.

An exported pt2e graph runs slower than float as it stands: with int8 activations ONNX Runtime fuses only part of the
convolutions on x86. The rewrite below keeps every number and changes how it is written: activations uint8 with zero
points 128 higher, biases int32 with scale s_x·s_w, one dequantization for each reader, and no clipping that the
following quantization performs anyway.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import (
    EVERY_SIZE,
    USUAL,
    Artifact,
    Packaging,
    Precision,
    TargetError,
)
from edgewise.targets._coverage import Work, convolution_macs, coverage_shares
from edgewise.targets._float16 import with_float16
from edgewise.targets._grouped import merge_narrow_groups
from edgewise.targets._int8_weights import with_int8_weights
from edgewise.targets._program import chosen_precision, fitting_sizes, for_inference, minimum_version
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers
from edgewise.targets._whole import write_whole
from edgewise.targets.onnx._activations import hard_activations_in_integers
from edgewise.targets.onnx._graph import constant_of, get_initializer
from edgewise.targets.onnx._session import open_session

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from torch.export import ExportedProgram
from edgewise.targets.onnx._graph import too_large

OPSET = 20
"""Per-channel quantization needs 13, and 20 has Gelu as an operator; ONNX Runtime reads it since 1.17."""

OPSETS = ("18", "19", "20", "21", "22")
"""What ``Packaging.minimum`` may name: from the exporter's own oldest on."""

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8-weights")
"""Of float networks, the usual one first. On x86 ONNX Runtime widens float16 weights when it loads and computes in float32:
the file is half as large and as fast as before; on Arm it has float16 kernels."""

LABELS = "labels"
"""Key of the file's metadata that holds the class names, a JSON list in the order of the outputs."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOAT_KERNELS = (*_WEIGHTED, "FusedConv", "FusedGemm", "FusedMatMul")
_INT8_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
_MOVES = (
    "Concat", "Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_INTEGER = (
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConvTranspose", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "MaxPool", "NhwcMaxPool",
)  # fmt: skip
_NOT_FLOAT = frozenset((*_INT8_KERNELS, *_INTEGER, *_MOVES, "QuantizeLinear", "DequantizeLinear"))
"""Operators of an int8 file that compute on integers or only move data; the rest are islands of float."""


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Write ``program``, captured at batch 1, to ``path``; int8 when it holds quantize nodes, else as ``packaging`` says.

    The bytes depend on the program and the packaging alone. Raises TargetError where a bias does not fit 32 bits, and
    for a packaging that ONNX Runtime does not have.
    """
    fitting_sizes(packaging, "onnx", EVERY_SIZE)
    precision = chosen_precision(program, packaging, "onnx", PRECISIONS)
    opset = int(minimum_version(packaging, "onnx", OPSETS, str(OPSET)))
    model = _translate_program(_store_weights(prepare_program(program), precision, packaging), opset)
    int8, macs = precision == "int8", _macs(model.graph)
    _spatial_means_to_pools(model.graph)
    if int8:
        _drop_implied_clips(model.graph)
        hard_activations_in_integers(model.graph)
        _activations_to_uint8(model.graph)
        _pads_in_integers(model.graph)
        _biases_to_int32(model.graph)
        _one_dequantization_per_reader(model.graph)
    _name_open_sides(model.graph)
    proto = _strip_traces(model)
    for key, value in sorted(_metadata(packaging).items()):
        proto.metadata_props.add(key=key, value=value)
    _save_model(proto, path)
    undelegated = tuple(name for op, name in _optimised_nodes(path, layouts=False) if int8 and op in _FLOAT_KERNELS)
    return Artifact(
        target="onnx",
        path=path,
        precision=precision,
        undelegated=undelegated,
        facts={
            **_file_facts(optimised_operators(path), opset, int8),
            "coverage": coverage_shares(_list_work(macs, undelegated)),
        },
    )


def prepare_program(program: ExportedProgram) -> ExportedProgram:
    """``program`` as it is translated, node by node."""
    return for_inference(merge_narrow_groups(program))


def _macs(graph: ir.Graph) -> dict[str, tuple[str, int]]:
    """Node's name -> its operator and MACs, of convolutions and products; an open size counts as one."""
    macs_by_node = {}
    for node in graph:
        if node.op_type in _WEIGHTED:
            left, right = (_sizes(value) for value in node.inputs[:2])
            result = _sizes(node.outputs[0])
            if node.op_type in ("Conv", "ConvTranspose"):
                macs = convolution_macs(result if node.op_type == "Conv" else left, right)
            else:
                macs = prod(result) * left[-1]
            macs_by_node[str(node.name)] = (node.op_type, macs)
    return macs_by_node


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    shape = () if value is None or value.shape is None else value.shape
    return tuple(size if isinstance(size, int) else 1 for size in shape) or (1,)


def _list_work(macs: Mapping[str, tuple[str, int]], undelegated: Sequence[str]) -> Iterator[Work]:
    # ONNX Runtime names what it fuses after the convolution or product in it.
    names = {name.removeprefix("fused ").split("/")[0] for name in undelegated}
    for name, (operator, count) in macs.items():
        yield Work(operator, count, name not in names)


def _store_weights(program: ExportedProgram, precision: Precision, packaging: Packaging) -> ExportedProgram:
    if precision == "float16":
        return with_float16(program, packaging)
    return with_int8_weights(program, packaging) if precision == "int8-weights" else program


def _translate_program(program: ExportedProgram, opset: int = OPSET) -> ir.Model:
    with quiet_loggers("torch.onnx._internal.exporter._registration", messages=(LEAF_SPEC,)):
        exported = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    assert exported is not None
    return exported.model


def _file_facts(operators: Counter[str], opset: int, int8: bool) -> dict[str, Any]:
    return {
        "opset": opset,
        "fused": sum(operators[op] for op in _INT8_KERNELS),
        "unfused": sum(operators[op] for op in _FLOAT_KERNELS),
        "quantize": operators["QuantizeLinear"],
        "dequantize": operators["DequantizeLinear"],
        "float_operators": {op: n for op, n in sorted(operators.items()) if op not in _NOT_FLOAT} if int8 else {},
        "operators": dict(sorted(operators.items())),
    }


def _same_number(first: ir.Value | None, second: ir.Value | None) -> bool:
    one, other = constant_of(first), constant_of(second)
    return one is not None and other is not None and one.dtype == other.dtype and bool((one == other).all())


def _bypass_node(graph: ir.Graph, node: ir.Node) -> None:
    """Remove ``node``; its readers read its first input."""
    import onnx_ir as ir

    source = node.inputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)


def _spatial_means_to_pools(graph: ir.Graph) -> None:
    """ReduceMean over height and width -> GlobalAveragePool, which has an int8 kernel."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type != "ReduceMean" or len(node.inputs) < 2:
            continue
        source, axes = node.inputs[0], constant_of(node.inputs[1])
        four = source is not None and source.shape is not None and len(source.shape) == 4
        keeps = node.attributes.get_int("keepdims", 1)
        if four and keeps and axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            pool = ir.node("GlobalAveragePool", [source], name=node.name)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [pool], node.outputs, pool.outputs)


def _drop_implied_clips(graph: ir.Graph) -> None:
    """Remove a Relu or Clip whose every reader is a quantization that saturates at the same bounds."""
    for node in list(graph):
        if node.op_type in ("Relu", "Clip"):
            low, high = _bounds(node)
            readers = [use.node for use in node.outputs[0].uses()]
            if readers and all(_is_saturating(reader, low, high) for reader in readers):
                _bypass_node(graph, node)


def _bounds(node: ir.Node) -> tuple[float, float]:
    low, high = (0.0, float("inf")) if node.op_type == "Relu" else (float("-inf"), float("inf"))
    numbers = [constant_of(value) for value in node.inputs[1:3]]
    if numbers and numbers[0] is not None:
        low = float(numbers[0])
    if len(numbers) > 1 and numbers[1] is not None:
        high = float(numbers[1])
    return low, high


def _is_saturating(node: ir.Node, low: float, high: float) -> bool:
    """Whether quantizing gives the same integers with and without clipping to [low, high] first."""
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (constant_of(value) for value in node.inputs[1:3])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.name != "int8":
        return False
    first, last = (-128 - int(zero_point)) * float(scale), (127 - int(zero_point)) * float(scale)
    half = float(scale) / 2
    return low < first + half and last - half < high


def _activations_to_uint8(graph: ir.Graph) -> None:
    """Zero points and integer constants of activations move up by 128: q + 128 with z + 128 is the same number."""
    import numpy as np
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = constant_of(node.inputs[2])
        if zero_point is None or zero_point.size != 1 or zero_point.ndim or zero_point.dtype != np.int8:
            continue
        shift = int(zero_point) + 128
        node.replace_input_with(2, get_initializer(graph, f"zero_point_{shift}", np.array(shift, np.uint8)))
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        elif (constant := constant_of(source)) is not None:
            node.replace_input_with(
                0, get_initializer(graph, f"{source.name}_u8", (constant.astype(np.int16) + 128).astype(np.uint8))
            )


def _pads_in_integers(graph: ir.Graph) -> None:
    """dequantize, pad with zero, quantize to the same scale -> pad the integers with the zero point."""
    for node in list(graph):
        if node.op_type != "Pad" or (
            len(node.inputs) > 2 and (value := constant_of(node.inputs[2])) is not None and value
        ):
            continue
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        after = [use.node for use in node.outputs[0].uses()]
        if before is None or before.op_type != "DequantizeLinear" or [n.op_type for n in after] != ["QuantizeLinear"]:
            continue
        quantize = after[0]
        if all(_same_number(before.inputs[index], quantize.inputs[index]) for index in (1, 2)):
            zero_point = before.inputs[2]
            node.replace_input_with(0, before.inputs[0])
            node.resize_inputs(max(len(node.inputs), 3))
            node.replace_input_with(2, zero_point)
            node.outputs[0].type = quantize.outputs[0].type
            _bypass_node(graph, quantize)
            if not before.outputs[0].uses():
                graph.remove(before, safe=True)


def _scale_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The scale of the DequantizeLinear that made ``value``, or None."""
    producer = None if value is None else value.producer()
    return constant_of(producer.inputs[1]) if producer is not None and producer.op_type == "DequantizeLinear" else None


def _biases_to_int32(graph: ir.Graph) -> None:
    """Bias -> round(b / (s_x·s_w)) as int32 behind a dequantization; what the integer kernels add."""
    import numpy as np
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        bias, of_input, of_weight = constant_of(node.inputs[2]), _scale_of(node.inputs[0]), _scale_of(node.inputs[1])
        if bias is None or of_input is None or of_weight is None:
            continue
        scale = (of_input.astype(np.float64) * of_weight.astype(np.float64)).astype(np.float32)
        rounded = np.rint(bias.astype(np.float64) / scale)
        if np.abs(rounded).max(initial=0) >= 2**31:
            raise TargetError(
                f"the bias of {node.name} does not fit 32 bits at scale {scale.min():.3g} (largest magnitude "
                f"{np.abs(bias).max():.3g}); leave this layer in float, or prune its dead channels"
            )
        name = f"{node.name}_bias"
        inputs = [
            get_initializer(graph, f"{name}_q", rounded.astype(np.int32)),
            get_initializer(graph, f"{name}_scale", scale),
            get_initializer(graph, f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
        ]
        dequantized = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}_dequantize")
        dequantized.outputs[0].name = f"{name}_dequantized"
        graph.insert_before(node, dequantized)
        node.replace_input_with(2, dequantized.outputs[0])


def _one_dequantization_per_reader(graph: ir.Graph) -> None:
    """Give each reader of a dequantized tensor a DequantizeLinear of its own, as the fusion looks for."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type != "DequantizeLinear":
            continue
        for number, use in enumerate(tuple(node.outputs[0].uses())[1:], 1):
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            copy = ir.node("DequantizeLinear", node.inputs, attributes, name=f"{node.name}_{number}_copy")
            copy.outputs[0].name = f"{node.outputs[0].name}_{number}_copy"
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, copy.outputs[0])


def _metadata(packaging: Packaging) -> dict[str, str]:
    labels = {LABELS: json.dumps(packaging.labels, ensure_ascii=False)} if packaging.labels else {}
    return labels | dict(packaging.metadata)


def _name_open_sides(graph: ir.Graph) -> None:
    """Call the input's open dimensions what they are; the exporter numbers them."""
    import onnx_ir as ir

    shape = graph.inputs[0].shape
    assert shape is not None
    open_ = [axis for axis, side in enumerate(shape) if not isinstance(side, int)]
    names = ("height", "width") if len(open_) == 2 else ("side",)
    graph.inputs[0].shape = ir.Shape(
        [names[open_.index(axis)] if axis in open_ else side for axis, side in enumerate(shape)]
    )


def _strip_traces(model: ir.Model) -> onnx.ModelProto:
    """The model without traces of the machine that wrote it (stack traces, paths), and without unused constants."""
    import onnx_ir as ir

    values = {value for node in model.graph for value in node.inputs} | set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if value not in values:
            del model.graph.initializers[name]
    for holder in (model, model.graph, *model.graph, *_graph_values(model.graph)):
        holder.metadata_props.clear()
        holder.doc_string = None
    for node in model.graph:
        for output in node.outputs:
            output.type = output.type if output in model.graph.outputs else None
            output.shape = output.shape if output in model.graph.outputs else None
    model.producer_name, model.producer_version = "edgewise", None
    proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def _graph_values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _save_model(proto: onnx.ModelProto, path: Path) -> None:
    """Write whole or not at all; the weights go to ``<name>.data`` beside the model where they exceed the limit."""
    import onnx

    with write_whole(path) as aside:
        if too_large(proto):
            data = f"{path.name}.data"
            onnx.save_model(proto, aside, save_as_external_data=True, location=data)
            aside.with_name(data).replace(path.with_name(data))
        else:
            aside.write_bytes(proto.SerializeToString(deterministic=True))


def optimised_operators(path: Path) -> Counter[str]:
    """Operator -> count in the graph that ONNX Runtime really executes for the file."""
    return Counter(op for op, _ in _optimised_nodes(path, layouts=True))


def _optimised_nodes(path: Path, layouts: bool) -> list[tuple[str, str]]:
    """(operator, node name) after ONNX Runtime's own optimisation; changing ``layouts`` renames the float nodes."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        open_session(path, threads=1, optimised=file, layouts=layouts)
        graph = onnx.load(file, load_external_data=False).graph
        return [(node.op_type, node.name) for node in graph.node]


def fused_copy(path: Path, copy: Path) -> None:
    """Write the graph that ONNX Runtime makes of the file at ``path``, the same for every processor, in its own format."""
    open_session(path, threads=1, optimised=copy, layouts=False, own_format=True)
