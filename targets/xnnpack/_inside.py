"""What a .pte file computes on the way to its answer, in ExecuTorch's runtime.

XNNPACK runs its whole piece of the graph behind one call, and ExecuTorch's own intermediate logging stops at that call.
So the file is cut open: its XNNPACK graph is read back, one value after the other is made its output, what follows the
piece is dropped, and the cut program is run. Which value belongs to which node is known by the debug handles that both
the file and a second lowering of the program carry.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import Inside, TargetError
from edgewise.targets._executorch import lower_to_edge, quiet_executorch
from edgewise.targets._executorch_runtime import runtime_log

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node


_NOBODY = 2**32 - 1
"""The external id of a value that stays inside a piece."""
_AS_OUTPUT = 2
_TYPES = {"xnn_datatype_fp32": torch.float32, "xnn_datatype_qint8": torch.int8}
_SCALARS = {torch.float32: 6, torch.int8: 1}
"""ExecuTorch's numbers of the types."""
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations to channels-last and back."""
_QUANTIZATION = "quantize_per_tensor"
_PASS_ON = ("relu", "hardtanh", "clamp", "relu6")


def inside_values(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    """Values of the file at ``path`` for ``images`` [N, ...] as it takes them; ``program`` as it is given to the lowering.

    Raises TargetError for a file that is no ExecuTorch program.
    """
    with quiet_executorch():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        edge = lower_to_edge(program, XnnpackPartitioner())
        names = _names(edge.exported_program().graph_module, program)
        values = {}
        with runtime_log():
            for cut in _make_cuts(path, names):
                values[cut.name] = torch.cat([cut.run(image[None]) for image in images])
    return Inside(program=program, values=values)


def _names(module: Any, program: ExportedProgram) -> dict[int, str]:
    """Debug handle of an XNNPACK operation -> node of ``program`` that its result is, quantized results as read."""
    pieces = [getattr(module, str(node.target)).original_module for node in module.graph.nodes if node.op == "get_attr"]
    names: dict[int, str] = {}
    readers = _readers(program)
    for piece in pieces:
        for node in piece.graph_module.graph.nodes:
            handle = node.meta.get("debug_handle")
            if node.op == "call_function" and handle is not None and handle not in names:
                source = _origin_name(_result_node(node), id(program.graph))
                if source is not None:
                    names[handle] = readers.get(source, source)
    return names


def _readers(program: ExportedProgram) -> dict[str, str]:
    """Quantization -> the first dequantization of its result, which the value is known by when it has several."""
    pairs = ((node, next(iter(node.users), None)) for node in program.graph.nodes if _QUANTIZATION in node.name)
    return {node.name: user.name for node, user in pairs if user is not None and _is_reading(user)}


def _result_node(node: Node) -> Node:
    """The node whose value an XNNPACK operation begun at ``node`` leaves: the dequantization that reads it, if any."""
    last = node
    for _ in range(3):  # an activation function, the quantization, the dequantization
        users = list(last.users)
        fits = [user for user in users if any(part in user.name for part in (*_PASS_ON, _QUANTIZATION))]
        if not users or len(fits) != len(users) or (len(users) > 1 and not _is_reading(users[0])):
            break
        last = users[0]
        if _is_reading(last):
            break
    return last


def _is_reading(node: Node) -> bool:
    return "dequantize_per_tensor" in node.name


def _origin_name(node: Node, graph: int) -> str | None:
    """The name of the node in the graph of that id which ``node`` came from, by the exporter's own records."""
    sources = node.meta.get("from_node")
    while sources:
        source = sources[-1]
        if source.graph_id == graph:
            name: str = source.name
            return name
        sources = source.from_node
    return None


@dataclass(frozen=True)
class _Cut:
    """The program that ends at one value."""

    name: str
    buffer: bytes
    type: torch.dtype
    last: bool
    """Whether the value lies in channels-last order."""
    scale: float
    zero_point: int

    def run(self, image: Tensor) -> Tensor:
        """float32 value for one image [1, ...]."""
        from executorch.extension.pybindings import portable_lib

        program = portable_lib._load_program_from_buffer(self.buffer)
        result: Tensor = program.load_method("forward").call([image.contiguous()])[0].clone()
        value = (result.float() - self.zero_point) * self.scale if self.type is torch.int8 else result.float()
        return value.permute(_TO_FIRST) if self.last else value


def _make_cuts(path: Path, names: Mapping[int, str]) -> Iterator[_Cut]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        file = deserialize_pte_binary(path.read_bytes())
    except (ValueError, OSError, RuntimeError) as error:
        raise TargetError(f"wanted an ExecuTorch program at {path}, found {error}") from error
    plan = file.program.execution_plan[0]
    for number, call in _backend_calls(plan):
        data = file.program.backend_delegate_data[plan.delegates[call.delegate_index].processed.index]
        graph = _Graph.read(bytes(data.data))
        last = graph.channels_last(names)
        for value, handle in graph.results():
            if handle in names and graph.type_of(value) is not None:
                yield _make_cut(file, number, call, graph, value, names[handle], last)


def _backend_calls(plan: Any) -> list[tuple[int, Any]]:
    """Positions of the plan's calls of XNNPACK."""
    calls = [
        (number, instruction.instr_args)
        for number, instruction in enumerate(plan.chains[0].instructions)
        if type(instruction.instr_args).__name__ == "DelegateCall"
    ]
    return [(number, call) for number, call in calls if plan.delegates[call.delegate_index].id == "XnnpackBackend"]


def _make_cut(file: Any, number: int, call: Any, graph: _Graph, value: int, name: str, last: set[int]) -> _Cut:
    from executorch.exir._serialize._program import serialize_pte_binary

    clone = copy.deepcopy(file)
    plan = clone.program.execution_plan[0]
    reference = plan.delegates[call.delegate_index].processed
    clone.program.backend_delegate_data[reference.index].data = graph.ending_at(value)
    plan.chains[0].instructions = plan.chains[0].instructions[: number + 1]
    outputs = len(graph.document["output_ids"])
    place = call.args[-outputs:][0]
    kind, shape = graph.type_of(value), graph.shape_of(value)
    assert kind is not None
    _retype_tensor(plan, place, kind, shape)
    plan.outputs = [place]
    scale, zero_point = graph.grid_of(value)
    buffer = bytes(serialize_pte_binary(clone, extract_delegate_segments=True))
    return _Cut(name, buffer, kind, value in last, scale, zero_point)


def _retype_tensor(plan: Any, place: int, kind: torch.dtype, shape: list[int]) -> None:
    """Give a planned tensor another type and shape, in fresh memory at the end of its pool."""
    tensor = plan.values[place].val
    tensor.scalar_type = type(tensor.scalar_type)(_SCALARS[kind])
    tensor.sizes, tensor.dim_order = list(shape), list(range(len(shape)))
    pool = tensor.allocation_info.memory_id
    start = -(-plan.non_const_buffer_sizes[pool] // 64) * 64
    tensor.allocation_info.memory_offset_low, tensor.allocation_info.memory_offset_high = start % 2**32, start // 2**32
    plan.non_const_buffer_sizes[pool] = start + torch.empty(shape, dtype=kind, device="meta").nbytes


@dataclass(frozen=True)
class _Graph:
    """An XNNPACK graph as plain JSON values, and the constants behind it."""

    document: dict[str, Any]
    constants: bytes

    @classmethod
    def read(cls, data: bytes) -> _Graph:
        """The graph of a delegate's payload."""
        from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnn
        from executorch.exir._serialize._flatbuffer import _flatc_decompile

        header = xnn.XNNHeader.from_bytes(data[: xnn.XNNHeader.EXPECTED_LENGTH])
        content = data[header.flatbuffer_offset :][: header.flatbuffer_size]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "graph.fbs").write_bytes(xnn._get_schema_bytes())
            (place / "graph.bin").write_bytes(content)
            _flatc_decompile(folder, str(place / "graph.fbs"), str(place / "graph.bin"), ["--raw-binary"])
            text = (place / "graph.json").read_text(encoding="utf-8")
        # flatc writes infinities as Python's json does not read them.
        document = json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))
        for entry, scale in zip(document["xvalues"], _read_scales(content), strict=True):
            if scale is not None:
                entry["xvalue_union"]["quant_params"]["scale"] = scale
        return cls(document, data[header.constant_data_offset :][: header.constant_data_size])

    def ending_at(self, value: int) -> bytes:
        """The payload again, with ``value`` as its first output in place of the one it had."""
        clone = _Graph(copy.deepcopy(self.document), self.constants)
        old = clone.document["output_ids"][0]
        if old != value:
            former, tensor = clone._tensor(old), clone._tensor(value)
            tensor |= {"external_id": former["external_id"], "flags": tensor["flags"] | _AS_OUTPUT}
            former |= {"external_id": _NOBODY, "flags": former["flags"] & ~_AS_OUTPUT}
            clone._tensor_of(value).update(tensor)
            clone._tensor_of(old).update(former)
            clone.document["output_ids"][0] = value
        return clone.written()

    def written(self) -> bytes:
        """The payload of the graph."""
        from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnn
        from executorch.exir._serialize._flatbuffer import _flatc_compile

        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "graph.fbs").write_bytes(xnn._get_schema_bytes())
            text = json.dumps(self.document)
            (place / "graph.json").write_text(re.sub(r"(-?)Infinity", r"\1inf", text), encoding="utf-8")
            _flatc_compile(folder, str(place / "graph.fbs"), str(place / "graph.json"))
            content = (place / "graph.bin").read_bytes()
        start, size = xnn._aligned_size(xnn.XNNHeader.EXPECTED_LENGTH, 16), xnn._aligned_size(len(content), 16)
        header: bytes = xnn.XNNHeader(start, len(content), start + size, len(self.constants)).to_bytes()
        padded: bytes = xnn._pad_to(header, start) + xnn._pad_to(content, size)
        return padded + self.constants

    def results(self) -> Iterator[tuple[int, int]]:
        """(value, debug handle) of each operation's result; a handle's last value is the operation's own."""
        outputs = {node["debug_handle"]: node["xnode_union"].get("output_id", 0) for node in self.document["xnodes"]}
        yield from ((value, handle) for handle, value in outputs.items())

    def type_of(self, value: int) -> torch.dtype | None:
        """The value's type; None for one that is not looked at."""
        return _TYPES.get(self._tensor(value)["datatype"])

    def shape_of(self, value: int) -> list[int]:
        """The value's shape as it lies in memory."""
        return list(self._tensor(value)["dims"])

    def grid_of(self, value: int) -> tuple[float, int]:
        """Scale and zero point of a quantized value; 1 and 0 of a float one."""
        parameters = self._value(value).get("quant_params", {})
        return parameters.get("scale", 1.0), parameters.get("zero_point", 0)

    def channels_last(self, ours: Container[int]) -> set[int]:
        """Values of four dimensions that lie in channels-last order: traced from the transpositions that XNNPACK put in.

        ``ours``: debug handles of the network's own operations. A transposition among them changes what a value is, and
        leaves the order that it lies in.
        """
        last: set[int] = set()
        for node in self.document["xnodes"]:
            fields = node["xnode_union"]
            put_in = node["xnode_union_type"] == "XNNStaticTranspose" and node["debug_handle"] not in ours
            sources = (source for key, source in fields.items() if key.startswith("input") and key.endswith("_id"))
            if fields["perm"] == _TO_LAST if put_in else any(source in last for source in sources):
                last.add(fields.get("output_id", 0))
        return {value for value in last if len(self.shape_of(value)) == 4}

    def _value(self, number: int) -> dict[str, Any]:
        for entry in self.document["xvalues"]:
            fields: dict[str, Any] = entry["xvalue_union"]
            if fields.get("tensor_value", fields)["id_out"] == number:
                return fields
        raise TargetError(f"the file's XNNPACK graph has no value {number}; it is damaged, export it again")

    def _tensor_of(self, number: int) -> dict[str, Any]:
        fields = self._value(number)
        tensor: dict[str, Any] = fields.get("tensor_value", fields)
        return tensor

    def _tensor(self, number: int) -> dict[str, Any]:
        return dict(self._tensor_of(number))


_XVALUES, _UNION_TYPE, _UNION, _PARAMETERS_TYPE, _PARAMETERS, _SCALE = 8, 4, 6, 6, 8, 4
"""Where the schema keeps a graph's values, a value's kind and content, its kind of quantization, that itself, its scale."""
_QUANTIZED, _PER_TENSOR = 2, 2


def _read_scales(content: bytes) -> Iterator[float | None]:
    """The scale of each value that has one for the whole tensor, to its last bit: flatc's text rounds to six digits."""
    from flatbuffers import encode, number_types
    from flatbuffers.table import Table

    def child(table: Table, slot: int) -> Table | None:
        offset = table.Offset(slot)
        return Table(content, table.Indirect(table.Pos + offset)) if offset else None

    root = Table(content, encode.Get(number_types.UOffsetTFlags.packer_type, content, 0))
    vector = root.Offset(_XVALUES)
    start = root.Vector(vector)
    for index in range(root.VectorLen(vector)):
        entry = Table(content, root.Indirect(start + 4 * index))
        value, quantized = child(entry, _UNION), content[entry.Pos + entry.Offset(_UNION_TYPE)] == _QUANTIZED
        assert value is not None
        kind = value.Offset(_PARAMETERS_TYPE) if quantized else 0
        parameters = child(value, _PARAMETERS) if kind and content[value.Pos + kind] == _PER_TENSOR else None
        offset = parameters.Offset(_SCALE) if parameters is not None else 0
        yield parameters.Get(number_types.Float32Flags, parameters.Pos + offset) if parameters and offset else None
