"""Mixed precision: what quantizing each layer costs, and which few layers to leave in float for it.

A layer's cost is measured by quantizing it alone: the Kullback-Leibler divergence of the network's answers from the
float ones on calibration images, with every other fake quantizer switched off. Where the whole quantized network loses
more than it may, the costliest layers go back to float, one after the other, until it does not.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgewise.measure.statistics import divergence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgewise.stage import Track
from edgewise.network.graph_layers import layers_of


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What quantizing one layer alone costs."""

    layer: str
    """Its name in the network."""
    operation: str
    kl: float
    """Mean Kullback-Leibler divergence of the softmax answers from the float network's, in nats an image."""
    agreement: float
    """Share of images that keep the class the float network gives them."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


class Scan:
    """A calibrated graph whose fake quantizers are switched on and off; the given graph is left as it was."""

    def __init__(self, prepared: GraphModule, batches: Sequence[Tensor]) -> None:
        """``prepared``: with ranges observed; ``batches``: of normalised images, each float32 [B, C, H, W]."""
        from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase, disable_observer

        self._graph = copy.deepcopy(prepared)
        self._graph.apply(disable_observer)
        self._fakes: dict[str, Any] = {
            name: module for name, module in self._graph.named_modules() if isinstance(module, FakeQuantizeBase)
        }
        self._batches = batches
        self.layers = layers_of(prepared)
        self.plain = self.answers(quantized=())

    @torch.no_grad()
    def answers(self, quantized: Collection[str] | None) -> Tensor:
        """float32 logits [N, classes] with the layers ``quantized`` in integers; None: all of them."""
        names = self._fakes if quantized is None else frozenset[str]().union(*(self.layers[n][1] for n in quantized))
        with self._only(names):
            return torch.cat([self._graph(part).float() for part in self._batches])

    @contextmanager
    def _only(self, names: Collection[str]) -> Iterator[None]:
        for name, fake in self._fakes.items():
            fake.enable_fake_quant(name in names)
        yield
        for fake in self._fakes.values():
            fake.enable_fake_quant(True)

    def cost(self, layer: str) -> Cost:
        """What quantizing ``layer`` alone costs."""
        own = self.answers((layer,))
        return Cost(
            layer=layer,
            operation=self.layers[layer][0],
            kl=divergence(own, self.plain),
            agreement=float((own.argmax(1) == self.plain.argmax(1)).float().mean()),
        )


def measure_sensitivity(scan: Scan, track: Track) -> list[Cost]:
    """Every layer's cost, the dearest first."""
    costs = [scan.cost(name) for name in track(list(scan.layers), "sensitivity of layers", len(scan.layers))]
    return sorted(costs, key=lambda cost: -cost.kl)


def fall_back(scan: Scan, costs: Sequence[Cost], labels: Tensor, budget: float, most: int) -> tuple[str, ...]:
    """The layers to leave in float: as few of the dearest as bring the loss of top-1 within ``budget``, ``most`` at most.

    ``labels``: int64 [N], of the images scanned; of unlabelled ones (−1) the float network's classes stand for them.
    """
    labels = torch.where(labels < 0, scan.plain.argmax(1), labels)
    before, float_layers = _top1(scan.plain, labels), list[str]()
    for cost in costs[: most + 1]:
        quantized = [name for name in scan.layers if name not in float_layers]
        if before - _top1(scan.answers(quantized), labels) <= budget + _ROUNDING or len(float_layers) == most:
            break
        float_layers.append(cost.layer)
    return tuple(float_layers)


_ROUNDING = 1e-6
"""Of a share of images in float32."""


def _top1(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(1) == labels).float().mean())
