"""A .tflite file as the objects of its own schema: what it computes, and the edits that are made to it.

The schema's classes come with the runtime. Reading follows offsets that the file holds, so that a damaged one ends in
whatever error comes first; here it is one error, with the file's name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgewise.targets import TargetError
from edgewise.targets._quiet import without_standard_error

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of every file of the format."""

_MOVES = frozenset(
    {
        "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "GATHER_ND", "PAD", "PADV2",
        "QUANTIZE", "RESHAPE", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE",
    }
)  # fmt: skip
"""Operators that compute nothing: they move numbers about, or write them otherwise."""

_IMAGE = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "TRANSPOSE_CONV": 2, "FULLY_CONNECTED": 0, "BATCH_MATMUL": 0}
"""Convolutions and products -> which of their inputs is the activation."""


@dataclass(frozen=True)
class Operation:
    """One operator of a file."""

    name: str
    """Of the operator, as the schema has it: ``CONV_2D``."""
    result: str
    """Name of its first output."""
    integers: bool
    """Whether it reads and writes int8 (or wider integers) alone."""
    macs: int
    outputs: tuple[int, ...]

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a product, which is where the multiply-accumulates are."""
        return self.name in _IMAGE

    @property
    def is_float_arithmetic(self) -> bool:
        """Whether it computes, not only moves numbers, and in float."""
        return not self.integers and self.name not in _MOVES


def check_identifier(path: Path) -> None:
    """Raise TargetError for what is no file of the format, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise TargetError(f"wanted a LiteRT model at {path}, found {error.strerror}; export it again") from error
    if head[4:8] != IDENTIFIER:
        raise TargetError(
            f"wanted a LiteRT model at {path}, found {path.stat().st_size} bytes that do not start as one; export it again"
        )


def read_model(content: bytes, what: object) -> Any:
    """The schema's ``ModelT`` of a file's bytes. Raises TargetError where they are damaged."""
    from ai_edge_litert.tools import flatbuffer_utils

    try:
        with without_standard_error():
            return flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    except (struct.error, IndexError, TypeError, ValueError, AttributeError, MemoryError, RecursionError) as error:
        raise TargetError(f"{what} is no whole LiteRT model ({type(error).__name__}); export it again") from error


def write_model(model: Any) -> bytes:
    """The bytes of a file."""
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def operations(model: Any) -> Iterator[Operation]:
    """Every operator of the file, in its order."""
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = operator_name(model, operator)
            inputs = [None if index < 0 else graph.tensors[index] for index in operator.inputs]
            outputs = [graph.tensors[index] for index in operator.outputs]
            yield Operation(
                name=name,
                result=outputs[0].name.decode() if outputs else "",
                integers=not any(map(is_float, (*inputs, *outputs))),
                macs=_count_macs(name, operator, inputs, outputs),
                outputs=tuple(int(index) for index in operator.outputs),
            )


def is_float(tensor: Any) -> bool:
    """Whether a tensor, which may be left out, holds floats."""
    from ai_edge_litert.schema_py_generated import TensorType

    return tensor is not None and tensor.type in (TensorType.FLOAT32, TensorType.FLOAT16, TensorType.BFLOAT16)


def _count_macs(name: str, operator: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of a convolution or product, whose tensors are [N, H, W, C]; 0 of any other operator."""
    if name not in _IMAGE:
        return 0
    image, result = _shape(inputs[_IMAGE[name]]), _shape(outputs[0])
    weight = _shape(inputs[1])
    if name == "CONV_2D":
        return prod(result) * prod(weight[1:])
    if name == "DEPTHWISE_CONV_2D":
        return prod(result) * prod(weight[1:3])
    if name == "TRANSPOSE_CONV":
        return prod(image) * prod(weight[:3])
    if name == "FULLY_CONNECTED":
        return prod(result) * weight[-1]
    return prod(result) * image[-2 if operator.builtinOptions.adjX else -1]


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(side) for side in tensor.shape)


def set_metadata(model: Any, entries: Mapping[str, str]) -> None:
    """Put text into the file, each under its name, in place of what the converter left there of itself."""
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT

    kept = [entry for entry in model.metadata or () if entry.name == b"min_runtime_version"]
    for name, text in sorted(entries.items()):
        buffer, entry = BufferT(), MetadataT()
        buffer.data = list(text.encode())
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        kept.append(entry)
    model.metadata = kept


def read_metadata(model: Any) -> dict[str, str]:
    """What ``set_metadata`` put there."""
    buffers = {entry.name.decode(): model.buffers[entry.buffer].data for entry in model.metadata or ()}
    return {name: bytes(data).decode() for name, data in buffers.items() if name != "min_runtime_version"}


def name_ends(model: Any, image: str, answer: str) -> None:
    """Call the input and the output so, as tensors and in the signature, whatever the converter calls them."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for index, entry, name in (
        (graph.inputs[0], signature.inputs[0], image),
        (graph.outputs[0], signature.outputs[0], answer),
    ):
        graph.tensors[index].name = entry.name = name.encode()


def float_ends(model: Any) -> None:
    """Let a file whose input or output is int8 take and give float32: a quantization before, a dequantization behind.

    The converter takes a quantization at either end away, and leaves it to the caller.
    """
    graph = model.subgraphs[0]
    for number, index in enumerate(graph.inputs):
        if not is_float(graph.tensors[index]) and _has_scale(graph.tensors[index]):
            outer = _float_twin(graph, index)
            graph.operators.insert(0, make_conversion(model, "QUANTIZE", outer, index))
            graph.inputs[number] = outer
            _move_signature(model, "inputs", index, outer)
    for number, index in enumerate(graph.outputs):
        if not is_float(graph.tensors[index]) and _has_scale(graph.tensors[index]):
            outer = _float_twin(graph, index)
            graph.operators.append(make_conversion(model, "DEQUANTIZE", index, outer))
            graph.outputs[number] = outer
            _move_signature(model, "outputs", index, outer)


def operator_name(model: Any, operator: Any) -> str:
    """As the schema has it: ``CONV_2D``."""
    from ai_edge_litert.tools import flatbuffer_utils

    return str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex))


def _has_scale(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.scale is not None


def _float_twin(graph: Any, index: int) -> int:
    """A float tensor of the same shape, which takes the name; the other gets one of its own."""
    inner = graph.tensors[index]
    outer = add_float_tensor(graph, index, inner.name)
    inner.name = inner.name + b"_int8"
    return outer


def add_float_tensor(graph: Any, like: int, name: bytes) -> int:
    """Where a new float tensor of the shape of the tensor ``like`` stands among the graph's."""
    from ai_edge_litert.schema_py_generated import TensorT, TensorType

    tensor = TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, graph.tensors[like].shape, TensorType.FLOAT32, 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def make_conversion(model: Any, name: str, source: int, result: int) -> Any:
    """A ``QUANTIZE`` or ``DEQUANTIZE`` from the tensor ``source`` to the tensor ``result``."""
    from ai_edge_litert.schema_py_generated import OperatorT

    operator = OperatorT()
    operator.opcodeIndex = _operator_code(model, name)
    operator.inputs, operator.outputs = [source], [result]
    return operator


def _operator_code(model: Any, name: str) -> int:
    """Where the file's table of operators has one of this name; put there where it has not."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

    number = getattr(BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if number in (code.builtinCode, code.deprecatedBuiltinCode):
            return index
    code = OperatorCodeT()
    # Version 2 of each is the one that knows int8.
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 2
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _move_signature(model: Any, end: str, before: int, after: int) -> None:
    for signature in model.signatureDefs or ():
        for tensor in getattr(signature, end):
            if tensor.tensorIndex == before:
                tensor.tensorIndex = after
