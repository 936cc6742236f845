"""What a .tflite file computes on the way to its answer, in LiteRT's interpreter.

Values are made outputs of a copy of the file. An operator of the format is one kernel, its activation function included,
so that the kernels that run are those that are deployed. Values carry the names of the program's nodes, which they were
given on the way in: of several operators in one, that of the last comes first.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import Inside
from edgewise.targets.litert._flatbuffer import operations, read_model, write_model
from edgewise.targets.litert._lowering import ANSWER
from edgewise.targets.litert._runtime import open_interpreter

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node

_LAST = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
"""Operators whose images and results lie in memory channels last."""
_TURNING = {"TRANSPOSE", "RESHAPE"}
"""Operators behind which a value lies otherwise than before."""
_TO_FIRST = (0, 3, 1, 2)


def inside_values(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    """Values of the file at ``path`` for ``images`` [N, ...] as it takes them, under the names of ``program``'s nodes."""
    model = read_model(path.read_bytes(), path)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    chosen = _choose_values(model, nodes)
    rows = _run_file(model, path.name, [value.index for value in chosen.values()], images)
    tensors = model.subgraphs[0].tensors
    values = {
        name: _as_numbers(tensors[value.index], torch.cat([row[value.index] for row in rows])).permute(value.order)
        for name, value in chosen.items()
    }
    return Inside(program=program, values=values)


@dataclass(frozen=True)
class _Value:
    """A tensor of the file that is a node's result."""

    index: int
    order: tuple[int, ...]
    """Of its dimensions, to be those of the program's."""


def _choose_values(model: Any, nodes: dict[str, Node]) -> dict[str, _Value]:
    """Node -> the tensor that is its result; a quantized one under its readers' names. An operator that the file has in
    several has several of one size: then it is the one on the program's grid, or none that can be told."""
    graph, last = model.subgraphs[0], _channels_last(model)
    candidates = defaultdict(list)
    for operation in operations(model):
        for index in operation.outputs:
            name = graph.tensors[index].name.decode().split(";")[0]
            name = next(reversed(nodes)) if name in (ANSWER, f"{ANSWER}_int8") else name
            if name in nodes:
                candidates[name].append(index)
    chosen: dict[str, _Value] = {}
    for name, indices in candidates.items():
        for node in (*_dequantizations(nodes[name]), nodes[name]):
            fitting = [index for index in indices if _is_value_of(graph.tensors[index], node)]
            values = [_Value(index, _order(graph.tensors[index], node, index in last)) for index in fitting]
            exact = [value for value in values if _has_shape(graph.tensors[value.index], value.order, node)]
            if len(fitting) == 1 or (exact and step_of(node)):
                chosen[node.name] = (exact or values)[-1]
    return chosen


_MOVES = ("permute", "transpose", "flatten", "reshape", "view")


def _dequantizations(node: Node) -> list[Node]:
    """Where the program reads ``node`` quantized: behind its quantization, or behind ``node`` where that is one.

    A quantization behind a move of a float value is done before the move in the file.
    """
    if step_of(node):
        return [node]
    quantized = [node] if ".quantize_per_tensor" in str(node.target) else []
    for user in node.users:
        moves = user.users if any(f"aten.{move}" in str(user.target) for move in _MOVES) else ()
        quantized += [reader for reader in (user, *moves) if ".quantize_per_tensor" in str(reader.target)]
    return [reader for one in quantized for reader in one.users if step_of(reader)]


def step_of(node: Node) -> float | None:
    """The scale of a dequantization; None for any other node."""
    return float(str(node.args[1])) if ".dequantize_per_tensor" in str(node.target) else None


def _is_value_of(tensor: Any, node: Node) -> bool:
    """Whether ``tensor`` has as many numbers as ``node`` gives, on the grid that the program has there."""
    example, grid = node.meta.get("val"), tensor.quantization
    if not isinstance(example, torch.Tensor) or prod(_shape(tensor)) != example.numel():
        return False
    quantized = grid is not None and grid.scale is not None
    step = step_of(node)
    if step is None or not quantized:
        return step is None and not quantized
    same = len(grid.scale) == 1 and torch.tensor(float(grid.scale[0])) == torch.tensor(step)
    return bool(same) and int(grid.zeroPoint[0]) == node.args[2]


def _order(tensor: Any, node: Node, last: bool) -> tuple[int, ...]:
    """How to turn a tensor's dimensions to have the program's shape, channels first where both orders have it."""
    usual = tuple(range(len(_shape(tensor))))
    orders = [_TO_FIRST, usual] if last else [usual, *([_TO_FIRST] if len(usual) == 4 else [])]
    return next((order for order in orders if _has_shape(tensor, order, node)), usual)


def _has_shape(tensor: Any, order: tuple[int, ...], node: Node) -> bool:
    shape = _shape(tensor)
    return tuple(shape[axis] for axis in order) == tuple(node.meta["val"].shape)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(side) for side in tensor.shape) if tensor.shape is not None else ()


def _channels_last(model: Any) -> set[int]:
    """Values of four dimensions that lie channels last: images and results of convolutions and poolings, and what is
    made of those, or they of it, by operators that leave the order alone."""
    graph = model.subgraphs[0]
    last: set[int] = set()
    steady = []
    for operation, operator in zip(operations(model), graph.operators, strict=True):
        values = {int(index) for index in (*operator.inputs, *operator.outputs) if _is_image(graph, int(index))}
        if operation.name in _LAST:
            image = operator.inputs[2 if operation.name == "TRANSPOSE_CONV" else 0]
            last |= {int(image), *operation.outputs}
        elif operation.name not in _TURNING:
            steady.append(values)
    grown = True
    while grown:
        before = len(last)
        for values in steady:
            if values & last:
                last |= values
        grown = len(last) > before
    return last


def _is_image(graph: Any, index: int) -> bool:
    return index >= 0 and len(_shape(graph.tensors[index])) == 4


def _run_file(model: Any, name: str, indices: list[int], images: Tensor) -> list[dict[int, Tensor]]:
    """For each image, tensor -> its value."""
    graph = model.subgraphs[0]
    graph.outputs = [*(int(index) for index in graph.outputs), *(i for i in indices if i not in set(graph.outputs))]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / name
        aside.write_bytes(write_model(model))
        interpreter = open_interpreter(aside, 1, single=False)
        feed = interpreter.get_input_details()[0]["index"]
        for image in images:
            interpreter.set_tensor(feed, image[None].contiguous().numpy())
            interpreter.invoke()
            rows.append({index: torch.from_numpy(interpreter.get_tensor(index)) for index in indices})
    return rows


def _as_numbers(tensor: Any, value: Tensor) -> Tensor:
    grid = tensor.quantization
    if value.is_floating_point() or grid is None or grid.scale is None:
        return value.float()
    return (value.float() - int(grid.zeroPoint[0])) * torch.tensor(float(grid.scale[0]))
