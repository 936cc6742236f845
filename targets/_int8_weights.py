"""Weights alone in int8: a scale per output channel, activations in float."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets import Packaging, TargetError
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers

SMALLEST = 256
"""Elements of the smallest weight that is stored so; below it, scales take what the integers save."""

SCALE_FLOOR = 2.0**-14
"""float16's smallest normal number: a channel of smaller weights keeps fewer of its bits."""

_aten = torch.ops.aten
_WEIGHTED = frozenset(
    {
        _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv2d.padding,
        _aten.convolution.default, _aten.linear.default,
    }
)  # fmt: skip


def with_int8_weights(program: ExportedProgram, packaging: Packaging) -> ExportedProgram:
    """``program`` (float) with its large weights as int8 constants behind a dequantize_per_channel node each.

    Symmetric, −127 … 127, so that zero stays zero. Raises TargetError for a program of several image sizes, and for one
    in which no weight is large enough.
    """
    if packaging.sizes is not None and packaging.sizes.kind != "fixed":
        raise TargetError("wanted a program of one image size to store its weights as int8; leave the other sizes out")
    with quiet_loggers("torchao", "torch.utils._pytree", messages=(LEAF_SPEC,)):
        import torchao.quantization.pt2e  # noqa: F401  registers quantized_decomposed

        graph = copy.deepcopy(program.module(check_guards=False))  # its tensors are the caller's
        assert isinstance(graph, GraphModule)
        weights = [node for node in graph.graph.nodes if _is_weight(graph, node)]
        if not weights:
            raise TargetError(
                f"found no weight of at least {SMALLEST} values to store as int8; choose another precision"
            )
        for node in weights:
            _quantize_weight(graph, node)
        graph.recompile()
        return torch.export.export(graph, program.example_inputs[0])


def _is_weight(graph: GraphModule, node: Node) -> bool:
    """Whether ``node`` is a large constant that convolutions and linear layers alone read, as their weight."""
    if node.op != "get_attr" or not node.users:
        return False
    weighs = all(user.target in _WEIGHTED and user.args[1] is node and user.args[0] is not node for user in node.users)
    is_transposed = any(user.target is _aten.convolution.default and user.args[6] for user in node.users)
    return weighs and not is_transposed and _read_tensor(graph, node).numel() >= SMALLEST


def _read_tensor(graph: GraphModule, node: Node) -> Tensor:
    owner, _, last = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), last)
    assert isinstance(value, Tensor)
    return value


@torch.no_grad()
def _quantize_weight(graph: GraphModule, node: Node) -> None:
    weight = _read_tensor(graph, node)
    scale = (weight.abs().amax(tuple(range(1, weight.dim()))) / 127).clamp_min(SCALE_FLOOR).half().float()
    steps = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).clamp(-127, 127).to(torch.int8)
    parts = {"int8": steps, "scale": scale, "zero_point": torch.zeros(len(scale), dtype=torch.int8)}
    names = {part: f"{node.name}_{part}" for part in parts}
    for part, value in parts.items():
        graph.register_buffer(names[part], value)
    with graph.graph.inserting_before(node):
        integers, scales, zeros = (graph.graph.get_attr(name) for name in names.values())
        wide = graph.graph.call_function(
            torch.ops.quantized_decomposed.dequantize_per_channel.default,
            (integers, scales, zeros, 0, -127, 127, torch.int8),
        )
    node.replace_all_uses_with(wide)
    graph.graph.erase_node(node)
