"""Integer operators for which LiteRT's delegate has no kernel, computed in floats between the same integers.

What the delegate does not take falls to kernels of the interpreter's own. Of LiteRT 2.3.0 those for a hard swish, a size
(``ABS``) and a product of two values are several times as slow as a dequantization, the operator in floats and a quantization,
all of which the delegate takes, and those for a mean of windows and GELU a little slower (LOG.md). Of products it takes those
in integers whose second factor has the zero point 0. What the program computes stays as it is, where the interpreter's hard
swish rounds on its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgewise.targets.litert._flatbuffer import add_float_tensor, is_float, make_conversion, operator_name

_SLOW = frozenset({"ABS", "AVERAGE_POOL_2D", "GELU", "HARD_SWISH"})


def widen_slow_integers(model: Any) -> None:
    """Compute such operators of ``model``, the schema's ``ModelT``, in floats, in place."""
    for graph in model.subgraphs:
        graph.operators = [part for operator in graph.operators for part in _in_floats(model, graph, operator)]


def _in_floats(model: Any, graph: Any, operator: Any) -> Iterator[Any]:
    """The operator itself, or with a dequantization of each of its inputs before it and a quantization behind it."""
    inputs, (result,) = [int(index) for index in operator.inputs if index >= 0], map(int, operator.outputs)
    if not _is_slow(graph, operator_name(model, operator), [*inputs, result]):
        yield operator
        return
    twins = {index: _add_twin(graph, index, b"_float") for index in inputs}
    twins[result] = _add_twin(graph, result, b";float")
    yield from (make_conversion(model, "DEQUANTIZE", index, twins[index]) for index in dict.fromkeys(inputs))
    operator.inputs, operator.outputs = [twins.get(int(index), -1) for index in operator.inputs], [twins[result]]
    yield operator
    yield make_conversion(model, "QUANTIZE", twins[result], result)


def _is_slow(graph: Any, name: str, indices: list[int]) -> bool:
    tensors = [graph.tensors[index] for index in indices]
    if any(map(is_float, tensors)):
        return False
    return name in _SLOW or (name == "BATCH_MATMUL" and int(tensors[1].quantization.zeroPoint[0]) != 0)


def _add_twin(graph: Any, index: int, suffix: bytes) -> int:
    """A float tensor beside an integer one: ``;`` leaves it the name of the program's node, whose result it is unrounded;
    an input is what was rounded, which no node gives."""
    first, _, _ = graph.tensors[index].name.partition(b";")
    return add_float_tensor(graph, index, first + suffix)
