"""What an .onnx file computes on the way to its answer, in ONNX Runtime.

Every quantized tensor is made an output of the file. The integers are what the fused kernels write anyway, so that the
graph that runs is the graph that is deployed. Of the float values those are asked for that ONNX Runtime has left in its
own graph; one that a kernel has swallowed stays inside, since asking for it would break the fusion under examination.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import Inside
from edgewise.targets.onnx._session import open_session

if TYPE_CHECKING:
    import onnx
    from torch import Tensor
    from torch.export import ExportedProgram


def inside_values(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    """Values of the file at ``path`` for ``images`` [N, ...] as it takes them, under the names of ``program``'s nodes."""
    import onnx

    model = onnx.load(path)
    names = {node.name for node in program.graph.nodes if node.op == "call_function"}
    readings = _readings(model.graph)
    integers = {name: reading for name, reading in readings.items() if name in names}
    names_kept = names & _kept_names(path)
    arrays = _run_model(path, model, [reading.source for reading in integers.values()] + sorted(names_kept), images)
    values = {name: reading.of(arrays[reading.source]) for name, reading in integers.items()}
    floats = {name: arrays[name] for name in names_kept if arrays[name].is_floating_point()}
    return Inside(program=program, values=floats | values)


class _Reading:
    """A DequantizeLinear: which integers it reads, and as what numbers."""

    def __init__(self, node: Any, constants: Mapping[str, Any]) -> None:
        import onnx

        self.source: str = node.input[0]
        self.scale = float(onnx.numpy_helper.to_array(constants[node.input[1]]))
        self.zero_point = int(onnx.numpy_helper.to_array(constants[node.input[2]]))

    def of(self, integers: Tensor) -> Tensor:
        """The numbers that the reader computes with."""
        return (integers.float() - self.zero_point) * self.scale


def _readings(graph: onnx.GraphProto) -> dict[str, _Reading]:
    """Dequantized value -> how it is read; per tensor, and of what a quantization or an integer operator made."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {name for node in graph.node for name in node.output}
    return {
        node.output[0]: _Reading(node, constants)
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in outputs
        and len(node.input) > 2
        and _is_single(constants, node.input[1])
        and node.input[2] in constants
    }


def _is_single(constants: Mapping[str, Any], name: str) -> bool:
    return name in constants and not list(constants[name].dims)


def _kept_names(path: Path) -> set[str]:
    """Results that the running graph has under the file's own names: what it fused, or moved a quantization before, is gone.

    To ask for such a one would have it computed on another way than the deployed graph's.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        open_session(path, threads=1, optimised=file)
        graph = onnx.load(file, load_external_data=False).graph
    nodes = (node for node in graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear"))
    return {name for node in nodes for name in node.output}


def _run_model(path: Path, model: onnx.ModelProto, value_names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Values ``value_names`` of the file, [N, ...] each."""
    import onnx

    from edgewise.targets.onnx._graph import too_large

    there = {output.name for output in model.graph.output}
    new = [name for name in dict.fromkeys(value_names) if name not in there]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in new)
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / path.name
        onnx.save_model(model, aside, save_as_external_data=too_large(model), location=f"{path.name}.data")
        runner = open_session(aside, threads=1)
    feed, names = runner.get_inputs()[0].name, list(dict.fromkeys(value_names))
    rows = [runner.run(names, {feed: image[None].numpy()}) for image in images]
    return {name: torch.cat([_to_tensor(row[index]) for row in rows]) for index, name in enumerate(names)}


def _to_tensor(array: Any) -> Tensor:
    value = torch.from_numpy(array)
    return value if value.dim() else value[None]
