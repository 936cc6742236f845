"""What a .tflite file computes on the way to its answer, in LiteRT's interpreter.

Values are made outputs of a copy of the file. An operator of the format is one kernel, its activation function included,
so that the kernels that run are those that are deployed. Values carry the names of the program's nodes, which they were
given on the way in: of several operators in one, that of the last comes first.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import Inside
from edgewise.targets.litert._flatbuffer import operations, read_model, write_model
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
    last = _channels_last(model)
    chosen = _choose_values(model, nodes)
    rows = _run_file(model, path.name, list(chosen.values()), images)
    graph = model.subgraphs[0]
    values = {}
    for name, index in chosen.items():
        value = _as_numbers(graph.tensors[index], torch.cat([row[index] for row in rows]))
        values[name] = value.permute(_TO_FIRST) if index in last else value
    return Inside(program=program, values=values)


def _choose_values(model: Any, nodes: Mapping[str, Node]) -> dict[str, int]:
    """Node -> the tensor that is its result, where there is just one of its size; a quantized one under its readers' name."""
    graph = model.subgraphs[0]
    candidates = defaultdict(list)
    for operation in operations(model):
        for index in operation.outputs:
            name = graph.tensors[index].name.decode().split(";")[0]
            if name in nodes:
                candidates[name].append(index)
    chosen: dict[str, int] = {}
    for name, indices in candidates.items():
        for node in (*_dequantizations(nodes[name]), nodes[name]):
            fitting = [index for index in indices if _is_value_of(graph.tensors[index], node)]
            if len(fitting) == 1:
                chosen[node.name] = fitting[0]
    return chosen


def _dequantizations(node: Node) -> list[Node]:
    """Where the program reads ``node`` quantized; a quantization named itself is the first of its own kind."""
    quantized = [user for user in node.users if ".quantize_per_tensor" in str(user.target)]
    if ".quantize_per_tensor" in str(node.target):
        quantized.append(node)
    return [reader for one in quantized for reader in one.users if ".dequantize_per_tensor" in str(reader.target)]


def _is_value_of(tensor: Any, node: Node) -> bool:
    """Whether ``tensor`` has as many numbers as ``node`` gives, on the grid that the program has there."""
    example = node.meta.get("val")
    if not isinstance(example, torch.Tensor) or _numbers(tensor) != example.numel():
        return False
    if ".dequantize_per_tensor" not in str(node.target):
        return tensor.quantization is None or tensor.quantization.scale is None
    scale, zero_point = node.args[1:3]
    grid = tensor.quantization
    if grid is None or grid.scale is None or len(grid.scale) != 1:
        return False
    same = torch.tensor(float(grid.scale[0])) == torch.tensor(float(str(scale)))
    return bool(same) and int(grid.zeroPoint[0]) == zero_point


def _numbers(tensor: Any) -> int:
    count = 1
    for side in tensor.shape if tensor.shape is not None else ():
        count *= int(side)
    return count


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
    return index >= 0 and graph.tensors[index].shape is not None and len(graph.tensors[index].shape) == 4


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
