"""Post-training quantization: activation ranges from a few images, and biases that undo the mean error of rounding.

Works on a prepared graph: the same fake quantizers that training would go on from, so that what is calibrated and what
is trained become the same kind of file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

if TYPE_CHECKING:
    from edgewise.targets._fake_quantize import ActivationFakeQuantize, PerChannelWeightFakeQuantize


Ranges = Literal["minmax", "percentile", "mse"]

PERCENTILE = 0.9999
"""Share of the values that the percentile's range holds; the rest is cut off at both ends alike."""

_BINS = 2048
_CANDIDATES = 40
_SMALLEST = 0.2
_aten = torch.ops.aten

_BIASES: Mapping[object, tuple[int, int]] = {
    _aten.conv1d.default: (2, 1),
    _aten.conv2d.default: (2, 1),
    _aten.conv2d.padding: (2, 1),
    _aten.conv_transpose2d.input: (2, 1),
    _aten.linear.default: (2, -1),
    _aten.addmm.default: (0, -1),
}
"""Operators with a bias: which argument it is, and the axis of the output that its channels lie on."""


@torch.no_grad()
def set_ranges(prepared: GraphModule, batches: Sequence[Tensor], how: Ranges) -> None:
    """Give each activation of ``prepared``, in place, its range over ``batches`` of normalised images [N, C, H, W].

    minmax: smallest and largest value. percentile: what holds ``PERCENTILE`` of the values. mse: the part of min-max
    whose rounding and clipping have the least mean squared error (Nagel et al. 2021, arXiv 2106.08295, section 3.1).
    """
    quantizers = activation_quantizers(prepared)
    with in_float(prepared):
        extremes = _extremes(prepared, quantizers, batches)
        ranges = extremes
        if how != "minmax":
            counts = _histograms(prepared, quantizers, batches, extremes)
            choose = _percentile_range if how == "percentile" else _least_error
            ranges = {name: choose(quantizers[name], counts[name], *extremes[name]) for name in quantizers}
    for name, (low, high) in ranges.items():
        observer = quantizers[name].activation_post_process
        observer.min_val.copy_(low)
        observer.max_val.copy_(high)
        quantizers[name].use_range(low, high)


Range = tuple[Tensor, Tensor]
"""Smallest and largest value, scalars."""


def activation_quantizers(prepared: nn.Module) -> dict[str, ActivationFakeQuantize]:
    """The fake quantizers of ``prepared`` whose ranges are not fixed, by name."""
    from edgewise.targets._fake_quantize import ActivationFakeQuantize

    return {name: m for name, m in prepared.named_modules() if isinstance(m, ActivationFakeQuantize)}


def _weight_quantizers(prepared: nn.Module) -> list[PerChannelWeightFakeQuantize]:
    from edgewise.targets._fake_quantize import PerChannelWeightFakeQuantize

    return [module for module in prepared.modules() if isinstance(module, PerChannelWeightFakeQuantize)]


@contextmanager
def in_float(prepared: GraphModule) -> Iterator[None]:
    """Within the block ``prepared`` neither rounds nor observes."""
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    quantizers = [module for module in prepared.modules() if isinstance(module, FakeQuantizeBase)]
    observing = [bool(module.observer_enabled[0]) for module in quantizers]
    for module in quantizers:
        module.disable_observer()
        module.disable_fake_quant()
    try:
        yield
    finally:
        for module, state in zip(quantizers, observing, strict=True):
            module.enable_fake_quant()
            module.enable_observer(state)


def _watch_values(
    prepared: GraphModule, quantizers: Mapping[str, Any], batches: Sequence[Tensor], see: Callable[[str, Tensor], None]
) -> None:
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, module in quantizers.items()
    ]
    try:
        for images in batches:
            prepared(images)
    finally:
        for hook in hooks:
            hook.remove()


def _extremes(prepared: GraphModule, quantizers: Mapping[str, Any], batches: Sequence[Tensor]) -> dict[str, Range]:
    ranges: dict[str, Range] = {}

    def see(name: str, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        if name in ranges:
            low, high = torch.minimum(ranges[name][0], low), torch.maximum(ranges[name][1], high)
        ranges[name] = (low, high)

    _watch_values(prepared, quantizers, batches, see)
    return ranges


def _histograms(
    prepared: GraphModule, quantizers: Mapping[str, Any], batches: Sequence[Tensor], extremes: Mapping[str, Range]
) -> dict[str, Tensor]:
    histograms: dict[str, Tensor] = {}

    def see(name: str, values: Tensor) -> None:
        low, high = (float(limit) for limit in extremes[name])
        counts = torch.histc(values.float(), _BINS, low, high if high > low else low + 1)
        histograms[name] = histograms[name] + counts if name in histograms else counts

    _watch_values(prepared, quantizers, batches, see)
    return histograms


def _centres(low: Tensor, high: Tensor) -> Tensor:
    return low + (high - low) * (torch.arange(_BINS, device=low.device) + 0.5) / _BINS


def _percentile_range(quantizer: ActivationFakeQuantize, counts: Tensor, low: Tensor, high: Tensor) -> Range:
    share, centres = counts.double().cumsum(0) / counts.double().sum(), _centres(low, high)
    outside = (1 - PERCENTILE) / 2
    first = int((share <= outside).sum())
    last = min(int((share < 1 - outside).sum()), _BINS - 1)
    return (low if first == 0 else centres[first], high if last == _BINS - 1 else centres[last])


def _least_error(quantizer: ActivationFakeQuantize, counts: Tensor, low: Tensor, high: Tensor) -> Range:
    """Both ends drawn in by the same factor, the one whose squared error over the histogram is least."""
    centres, weights = _centres(low, high).double(), counts.double()
    factors = torch.linspace(_SMALLEST, 1, _CANDIDATES, dtype=torch.float64, device=low.device)[:, None]
    lowest, highest = quantizer.quant_min, quantizer.quant_max
    if quantizer.qscheme == torch.per_tensor_symmetric:
        scales = torch.maximum(-low, high).double() * factors / highest
        zero_points = torch.zeros_like(scales)
    else:
        below, above = low.clamp_max(0).double() * factors, high.clamp_min(0).double() * factors
        scales = (above - below) / (highest - lowest)
        zero_points = lowest - (below / scales.clamp_min(1e-12)).round()
    scales = scales.clamp_min(1e-12)
    rounded = ((centres / scales).round() + zero_points).clamp(lowest, highest).sub(zero_points) * scales
    best = factors[((rounded - centres).square() * weights).sum(1).argmin()].to(low.dtype)[0]
    return low * best, high * best


@torch.no_grad()
def correct_biases(prepared: GraphModule, images: Tensor) -> None:
    """Shift each bias of ``prepared``, in place, so that rounded weights leave every channel's mean over ``images`` as it was.

    Layer by layer, each on what the layers before it now give (Nagel et al. 2019, arXiv 1906.04721, section 4.2, with
    measured means). Activations pass as they are: where a range cuts off a rare large value, a shift that made up for it
    would move all the others. ``images`` [N, C, H, W], normalised, go through as one batch.
    """
    with in_float(prepared):
        means = _Means(prepared)
        means.run(images)
        for quantizer in _weight_quantizers(prepared):
            quantizer.enable_fake_quant()
        _Corrected(prepared, means.found).run(images)


class _Means(Interpreter):
    """Runs a graph and keeps the mean of each channel after each operator with a bias."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.target in _BIASES and isinstance(result, Tensor):
            self.found[n] = self.channel_means(n, result)
        return result

    def channel_means(self, node: Node, result: Tensor) -> Tensor:
        """[channels]"""
        channel_axis = _BIASES[node.target][1] % result.dim()
        return result.float().mean([axis for axis in range(result.dim()) if axis != channel_axis])


class _Corrected(_Means):
    """Runs a graph and moves each bias by what the mean of its channel lacks."""

    def __init__(self, module: GraphModule, means: Mapping[Node, Tensor]) -> None:
        super().__init__(module)
        self.wanted = means

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        bias = self._bias(n)
        if bias is None or n not in self.found:
            return result
        missing = self.wanted[n] - self.found[n]
        bias += missing
        channel_axis = _BIASES[n.target][1] % result.dim()
        return result + missing.view([-1 if axis == channel_axis else 1 for axis in range(result.dim())])

    def _bias(self, node: Node) -> Tensor | None:
        """The bias that ``node`` alone reads."""
        place = _BIASES.get(node.target)
        source = node.args[place[0]] if place and len(node.args) > place[0] else None
        if not isinstance(source, Node) or source.op != "get_attr" or len(source.users) != 1:
            return None
        bias: Tensor = self.fetch_attr(str(source.target))
        return bias
