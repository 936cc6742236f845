"""Which operators of an int8 file compute in integers, and which on values that are not int8's."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from edgewise.targets._coverage import Work, convolution_macs
from edgewise.targets.coreml._mil import Name, Operation, Program

_MOVES = frozenset({
    "concat", "crop", "depth_to_space", "expand_dims", "identity", "pad", "pixel_shuffle", "pixel_unshuffle",
    "reshape", "slice_by_index", "slice_by_size", "space_to_depth", "split", "squeeze", "tile",
    "transpose", "upsample_nearest_neighbor",
})  # fmt: skip
_ACTIVATIONS = frozenset({
    "clamped_relu", "clip", "elu", "gelu", "leaky_relu", "prelu", "relu", "relu6", "sigmoid", "sigmoid_hard", "silu",
    "softplus", "tanh",
})  # fmt: skip
_PLUMBING = frozenset({"cast", "quantize", "dequantize"})


_INTEGER_KERNELS = _MOVES | frozenset({
    "add", "avg_pool", "clip", "conv", "conv_transpose", "linear", "matmul", "max_pool", "mul", "reduce_mean", "relu",
    "relu6",
})  # fmt: skip


def integer_values(program: Program) -> frozenset[str]:
    """Values that an int8 kernel never stores: its dequantized operands, and its sums before they are quantized.

    A kernel is what stands between dequantize and quantize operators where integers can compute it: a convolution, a
    product, a sum, a mean, with the moves and clips around it. It adds integers in 32 bits and rounds once, at the end.
    """
    readers: dict[str, list[Operation]] = {}
    for operation in program.operations:
        for name in _operands(operation):
            readers.setdefault(name, []).append(operation)
    candidates, names = _from_integers(program), set[str]()
    for operation in reversed(program.operations):
        for result in operation.results:
            after = readers.get(result.name, [])
            ends = (r.type == "quantize" or names.issuperset(o.name for o in r.results) for r in after)
            if result.name in candidates and after and all(ends):
                names.add(result.name)
    return frozenset(names)


def _from_integers(program: Program) -> frozenset[str]:
    """Values made of dequantized ones alone, by operators that integers can compute."""
    names: set[str] = set()
    for operation in program.operations:
        source = operation.type == "dequantize" or operation.type.startswith("constexpr_affine")
        if source or (operation.type in _INTEGER_KERNELS and names.issuperset(_operands(operation))):
            names.update(result.name for result in operation.results)
    return frozenset(names)


def float_islands(program: Program) -> list[Operation]:
    """Operators that compute on values which no dequantize operator gave, in the program's order.

    Moving values about keeps them int8; an activation counts with the operator before it, into which it is fused.
    """
    makers = {result.name: operation for operation in program.operations for result in operation.results}
    return [
        operation
        for operation in program.operations
        if operation.type not in _MOVES | _PLUMBING
        and not operation.type.startswith("constexpr_")
        and not all(_from_int8(name, makers, operation.type in _ACTIVATIONS) for name in _operands(operation))
    ]


def integer_work(program: Program) -> list[Work]:
    """The program's operators with their MACs, an island's as not taken by an int8 kernel."""
    islands = {id(operation) for operation in float_islands(program)}
    shapes = {result.name: result.shape for operation in program.operations for result in operation.results}
    shapes[program.input.name] = program.input.shape
    return [
        Work(operation.type, _macs(operation, shapes), id(operation) not in islands)
        for operation in program.operations
        if not operation.type.startswith("constexpr_")
    ]


def _macs(operation: Operation, shapes: Mapping[str, tuple[int | None, ...]]) -> int:
    """MACs of one operator; an open size counts as one."""

    def shape(key: str) -> tuple[int, ...]:
        value = operation.arguments[key]
        shape_of_value = shapes[value.of] if isinstance(value, Name) else getattr(value, "shape", ())
        return tuple(size or 1 for size in shape_of_value)

    result = tuple(size or 1 for size in operation.results[0].shape) if operation.results else ()
    if operation.type in ("conv", "conv_transpose"):
        return convolution_macs(result if operation.type == "conv" else shape("x"), shape("weight"))
    if operation.type == "linear":
        return prod(result) * shape("weight")[-1]
    if operation.type == "matmul":
        return prod(result) * shape("x")[-2 if operation.arguments.get("transpose_x") else -1]
    return 0


def _operands(operation: Operation) -> list[str]:
    """The values an operation reads, less constants; a weight that is a constant tensor is named ``""``."""
    flat = [item for key, value in operation.arguments.items() for item in _each_value(key, value)]
    return [item.of if isinstance(item, Name) else "" for item in flat]


def _each_value(key: str, value: object) -> tuple[object, ...]:
    if isinstance(value, tuple):
        return value
    return (value,) if isinstance(value, Name) or key == "weight" else ()


def _from_int8(name: str, makers: Mapping[str, Operation], fused: bool) -> bool:
    """Whether a dequantize operator gave the value; for an activation (``fused``), or an operator fed by one did."""
    maker = makers.get(name)
    if maker is None:
        return False
    if maker.type == "dequantize" or maker.type.startswith("constexpr_"):
        return True
    if maker.type in _MOVES or (fused and maker.type not in _PLUMBING):
        return all(_from_int8(operand, makers, False) for operand in _operands(maker))
    return False
