"""Hard sigmoid and hard swish in integers, of which ONNX Runtime has only additions and products.

hardsigmoid(x) = clip(x + 3, 0, 6) / 6 (Howard et al. 2019, arXiv 1905.02244, section 5.2) is an addition whose result is
quantized with scale 6·s and zero point 0: saturation clips it, and reading the same integers with scale s divides by 6.
hardswish(x) = x·hardsigmoid(x) is that and a product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgewise.targets.onnx._graph import constant_of, get_initializer

if TYPE_CHECKING:
    import onnx_ir as ir


_SHIFT, _SPAN, _LOWEST, _LEVELS = 3.0, 6.0, -128, 255


def hard_activations_in_integers(graph: ir.Graph) -> None:
    """Rewrite every HardSigmoid and HardSwish that stands between a dequantization and quantizations, in place.

    A hard sigmoid whose quantization would not saturate at 0 and at 1 keeps its float kernel.
    """
    for node in list(graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        readers = [use.node for use in node.outputs[0].uses()]
        if source is None or source.op_type != "DequantizeLinear" or not readers:
            continue
        if any(reader.op_type != "QuantizeLinear" for reader in readers):
            continue
        if node.op_type == "HardSwish":
            _rewrite_swish(graph, node)
        elif node.op_type == "HardSigmoid" and len(readers) == 1 and _is_sixth(node):
            _rewrite_sigmoid(graph, node, readers[0])


def _is_sixth(node: ir.Node) -> bool:
    slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return abs(slope - 1 / 6) < 1e-6 and offset == 0.5


def _rewrite_swish(graph: ir.Graph, node: ir.Node) -> None:
    import onnx_ir as ir

    x = node.inputs[0]
    assert x is not None
    share = _clip_integers(graph, node, 1 / _LEVELS)
    product = ir.node("Mul", [x, share], name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def _rewrite_sigmoid(graph: ir.Graph, node: ir.Node, quantize: ir.Node) -> None:
    import onnx_ir as ir

    scale, zero_point = (constant_of(value) for value in quantize.inputs[1:3] if value is not None)
    if scale is None or zero_point is None:
        return
    step, lowest = float(scale), int(zero_point)
    if lowest != _LOWEST or _LEVELS * step > 1 + step / 2:
        return
    share = _clip_integers(graph, node, step)
    ir.convenience.replace_all_uses_with(node.outputs[0], share)
    graph.remove(node, safe=True)


def _clip_integers(graph: ir.Graph, node: ir.Node, step: float) -> ir.Value:
    """clip(x + 3, 0, 6) / 6 for the input of ``node``: integers of scale ``step`` and zero point -128, dequantized."""
    import onnx_ir as ir

    name, x = str(node.name), node.inputs[0]
    lowest = get_initializer(graph, "lowest", np.array(_LOWEST, np.int8))
    three = [
        get_initializer(graph, "three_q", np.array(127, np.int8)),
        get_initializer(graph, "three_scale", np.array(_SHIFT / _LEVELS, np.float32)),
        lowest,
    ]
    wide = get_initializer(graph, f"{name}_wide", np.array(_SPAN * step, np.float32))
    narrow = get_initializer(graph, f"{name}_narrow", np.array(step, np.float32))
    constant = ir.node("DequantizeLinear", three, name=f"{name}_three")
    addition = ir.node("Add", [x, constant.outputs[0]], name=f"{name}_add")
    quantized = ir.node("QuantizeLinear", [addition.outputs[0], wide, lowest], name=f"{name}_clip")
    share = ir.node("DequantizeLinear", [quantized.outputs[0], narrow, lowest], name=f"{name}_share")
    nodes = [constant, addition, quantized, share]
    for part in nodes:
        part.outputs[0].name = f"{part.name}_output"
    graph.insert_before(node, nodes)
    return share.outputs[0]
