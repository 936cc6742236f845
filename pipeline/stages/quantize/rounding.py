"""Weights rounded so that a layer's answers change least, in place of each weight to its nearest integer.

The error of one rounded weight is made up for by those that are rounded after it, as far as the layer's inputs vary together
(Frantar and Alistarh 2022, arXiv 2208.11580; Frantar et al. 2022, arXiv 2210.17323). Nothing is trained: all it takes
are the second moments of each layer's inputs on the calibration images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgewise.stages.quantize.calibrate import in_float

if TYPE_CHECKING:
    from edgewise.targets._fake_quantize import PerChannelWeightFakeQuantize

POSITIONS = 32
"""Of each image's outputs, pixels or tokens, drawn at random: what those are computed from is looked at."""
LARGEST = 4608
"""Weights behind one output, beyond which they go to their nearest integers: 512 channels of 3 x 3 are the widest usual layer."""
DAMPING = 0.01
"""Share of the mean second moment that is added to each input's own: 1 % (Frantar et al. 2022, section 4)."""
_BLOCK = 128
"""Weights of a row that are rounded before those behind them are told, which is faster."""

_aten = torch.ops.aten
_LAYERS = (_aten.conv2d.default, _aten.conv2d.padding, _aten.linear.default)


@torch.no_grad()
def round_weights(prepared: GraphModule, batches: Sequence[Tensor], seed: int) -> None:
    """Choose, in place, the integer of each weight of ``prepared``'s convolutions and linear layers.

    ``batches``: of normalised images [N, C, H, W], which go through in float; ``seed``: of the positions that are looked at.
    """
    moments = _Moments(prepared, seed)
    with in_float(prepared):
        for images in batches:
            moments.run(images)
    for node, sums in moments.sums.items():
        quantizer, weight = _quantizer_of(prepared, node), moments.layers[node]
        scale, limit = quantizer.scale_of(weight), int(quantizer.quant_max)
        quantizer.choose(round_with_feedback(weight, scale, sums.damped(), limit))


class _Sums:
    """Second moments of what one layer's outputs are computed from, about the mean where a bias makes up for that."""

    def __init__(self, centred: bool) -> None:
        self.count, self.centred = 0, centred
        self.squares: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, patches: Tensor) -> None:
        """``patches`` [groups, n, D]."""
        squares, total = torch.bmm(patches.mT, patches), patches.sum(1)
        self.squares = squares if self.squares is None else self.squares + squares
        self.total = total if self.total is None else self.total + total
        self.count += patches.shape[1]

    def damped(self) -> Tensor:
        """[groups, D, D], positive definite: damped, and the more the fewer patches there were for so many inputs."""
        assert self.squares is not None and self.total is not None
        moments = self.squares.double() / self.count
        if self.centred:
            mean = self.total.double() / self.count
            moments = moments - mean[:, :, None] * mean[:, None, :]
        width = moments.shape[-1]
        diagonal = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        share = DAMPING + width / self.count
        return moments + torch.diag_embed((share * diagonal)[:, None].expand(-1, width))


class _Moments(Interpreter):
    """Runs a graph and sums up the second moments of what its layers are given."""

    def __init__(self, module: GraphModule, seed: int) -> None:
        super().__init__(module)
        self.sums: dict[Node, _Sums] = {}
        self.layers = {node: weight for node in module.graph.nodes if (weight := _own_weight(module, node)) is not None}
        self._draw = torch.Generator().manual_seed(seed)

    def run_node(self, n: Node) -> Any:
        if n in self.layers:
            patches = _patches_of(n, self.env[n.all_input_nodes[0]], self.layers[n], self._draw)
            self.sums.setdefault(n, _Sums(centred=len(n.args) > 2 and n.args[2] is not None)).add(patches)
        return super().run_node(n)


def _own_weight(graph: GraphModule, node: Node) -> Tensor | None:
    """The weight of a convolution or linear layer where it is rounded for that layer alone, and not too large."""
    from edgewise.targets._fake_quantize import PerChannelWeightFakeQuantize

    quantizer = node.args[1] if node.target in _LAYERS and len(node.args) > 1 else None
    if not isinstance(quantizer, Node) or quantizer.op != "call_module" or len(quantizer.users) > 1:
        return None
    source = quantizer.args[0]
    if not isinstance(graph.get_submodule(str(quantizer.target)), PerChannelWeightFakeQuantize):
        return None
    if not isinstance(source, Node) or source.op != "get_attr" or len(source.users) > 1:
        return None
    weight = graph.get_parameter(str(source.target))
    return weight if weight[0].numel() <= LARGEST else None


def _quantizer_of(graph: GraphModule, node: Node) -> PerChannelWeightFakeQuantize:
    quantizer: Any = node.args[1]
    module: Any = graph.get_submodule(str(quantizer.target))
    return module  # type: ignore[no-any-return]


def _patches_of(node: Node, inputs: Tensor, weight: Tensor, draw: torch.Generator) -> Tensor:
    """[groups, n, D] of what ``node`` computes single outputs from."""
    if node.target is _aten.linear.default:
        tokens = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return tokens[:, _draw_positions(tokens.shape[1], draw)].flatten(0, 1)[None].float()
    stride, padding, dilation, groups = _settings_of(node, weight)
    kernel = weight.shape[2:]
    padded = F.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    spans = [dil * (size - 1) for dil, size in zip(dilation, kernel, strict=True)]
    sides = [(side - span - 1) // step + 1 for side, span, step in zip(padded.shape[2:], spans, stride, strict=True)]
    chosen = _draw_positions(sides[0] * sides[1], draw)
    top, left = chosen // sides[1] * stride[0], chosen % sides[1] * stride[1]
    pixels = [
        padded[:, :, top + dilation[0] * row, left + dilation[1] * column]
        for row, column in itertools.product(*map(range, kernel))
    ]
    patches = torch.stack(pixels, 2).float()  # [B, C, K, n]
    batch, channels, size, count = patches.shape
    by_group = patches.reshape(batch, groups, channels // groups * size, count)
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


def _draw_positions(count: int, draw: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=draw)[:POSITIONS]


def _settings_of(node: Node, weight: Tensor) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a convolution."""
    arguments: list[Any] = [*node.args[3:], *([None] * 4)]
    stride, padding, dilation, groups = arguments[:4]
    dilation = _pair(dilation or 1)
    if isinstance(padding, str):
        spans = [dil * (size - 1) for dil, size in zip(dilation, weight.shape[2:], strict=True)]
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    return _pair(stride or 1), _pair(padding or 0), dilation, int(groups or 1)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def round_with_feedback(weight: Tensor, scale: Tensor, moments: Tensor, limit: int) -> Tensor:
    """Integers [Cout, ...] for ``weight``, each in −``limit`` … ``limit``, for which the layer's outputs change least.

    ``scale`` [Cout]; ``moments`` [groups, D, D] of the inputs. The largest weight of each channel stays where its scale
    comes from, at the end of the range.
    """
    groups, width = moments.shape[:2]
    rows = (weight.flatten(1).double() / scale.double()[:, None]).reshape(groups, -1, width)
    order = moments.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    rows, moments = rows[:, :, order], moments[:, order][:, :, order]
    fixed = torch.zeros_like(rows, dtype=torch.bool).scatter_(2, rows.abs().argmax(2, keepdim=True), True)
    ends = rows.sign() * limit
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    integers = torch.empty_like(rows)
    for first in range(0, width, _BLOCK):
        last = min(first + _BLOCK, width)
        errors = []
        for i in range(first, last):
            column = rows[:, :, i]
            integers[:, :, i] = torch.where(fixed[:, :, i], ends[:, :, i], column.round().clamp(-limit, limit))
            errors.append(((column - integers[:, :, i]) / inverse[:, i, i, None])[:, :, None])
            rows[:, :, i + 1 : last] -= errors[-1] * inverse[:, None, i, i + 1 : last]
        rows[:, :, last:] -= torch.cat(errors, 2) @ inverse[:, first:last, last:]
    return integers[:, :, order.argsort()].reshape(weight.shape).to(torch.int8)
