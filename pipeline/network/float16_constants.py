"""Constants that every runtime can hold: a quantized network's scales and biases, rounded to float16.

Some formats keep them in 16 bits (11 significant), others in 32. A network whose own constants fit the narrowest is the
same network in all of them, where rounding on the way into one file would move a few values by a step there alone.
Relative to a scale's or bias's own size the change is at most 2^-12, once, before the network is judged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise.network.graph_layers import is_fake_quantizer


@torch.no_grad()
def round_prepared(prepared: GraphModule) -> None:
    """Round, in place, the scales of a prepared graph's fake quantizers and every constant that they do not quantize."""
    round_scales(prepared)
    for node in prepared.graph.nodes:
        if node.op == "get_attr" and not any(is_fake_quantizer(prepared, user) for user in node.users):
            _round_in_place(_read_attribute(prepared, str(node.target)))


@torch.no_grad()
def round_scales(prepared: nn.Module) -> None:
    """Round, in place, the scales of a prepared graph's fake quantizers."""
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    for module in prepared.modules():
        scale = getattr(module, "scale", None)
        if isinstance(module, FakeQuantizeBase) and isinstance(scale, Tensor):
            _round_in_place(scale)


@torch.no_grad()
def round_converted(converted: GraphModule) -> None:
    """Round, in place, the scales of a converted graph's quantize and dequantize nodes."""
    for node in converted.graph.nodes:
        name = str(node.target)
        if "quantize_per_tensor" in name and isinstance(node.args[1], float):
            node.update_arg(1, float(torch.tensor(node.args[1]).half()))
        elif "quantize_per_channel" in name and node.args[1].op == "get_attr":
            _round_in_place(_read_attribute(converted, str(node.args[1].target)))
    converted.recompile()


def _read_attribute(graph: GraphModule, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    value = getattr(graph.get_submodule(owner), last)
    assert isinstance(value, Tensor)
    return value


def _round_in_place(tensor: Tensor) -> None:
    """Values that float16 cannot hold, beyond its range or below its precise one, stay as they are."""
    nearest = tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
    fits = (tensor.abs() >= 2.0**-14) & nearest.isfinite()
    tensor.copy_(torch.where(fits, nearest, tensor))
