"""Constants of an ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir


def constant_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The constant that ``value`` holds, or None."""
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def get_initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """The initializer ``name`` holding ``array``; made where it is missing."""
    import onnx_ir as ir

    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind = ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor))
    return graph.initializers[name]


EXTERNAL_ABOVE = 2**31 - 2**20
"""Bytes of weights above which they go to a file beside the model: a protobuf message ends at 2 GiB."""


def too_large(proto: onnx.ModelProto) -> bool:
    """Whether the weights have to lie in a file beside the model."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > EXTERNAL_ABOVE
