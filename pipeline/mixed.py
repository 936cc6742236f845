"""Mixed precision: what quantizing each layer costs, and which few layers to leave in float for it.

A layer's cost is measured by quantizing it alone: the Kullback-Leibler divergence of the network's answers from the
float ones on calibration images, with every other fake quantizer switched off. Where the whole quantized network loses
more than it may, the costliest layers go back to float, one after the other, until it does not.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.statistics import divergence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.recipe import Track

_BATCH = 64
_PASSIVE = ("relu", "pool", "mean", "reshape", "cat")
"""Operator patterns whose output has its input's grid."""
_CLIPS = ("relu", "hardtanh", "clamp")


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


def layers_of(prepared: GraphModule) -> dict[str, tuple[str, frozenset[str]]]:
    """Layer -> its operation, and the fake quantizers at its inputs, weights and output.

    Operations that only move, select or average numbers are no layers: they are quantized where their input is.
    """
    passive = _passive()
    found: dict[str, tuple[str, set[str]]] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_function" or node.target in passive:
            continue
        inputs = {str(source.target) for source in node.all_input_nodes if is_fake_quantizer(prepared, source)}
        outputs = {str(user.target) for user in _behind(node) if is_fake_quantizer(prepared, user)}
        if inputs:
            _, places = found.setdefault(layer_name(node), (_operation(node), set()))
            places |= inputs | outputs
    return {name: (operation, frozenset(places)) for name, (operation, places) in found.items()}


def module_name(node: Node) -> str:
    """The dotted name of the module that a captured operation stands in; empty where the capture did not keep it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def layer_name(node: Node) -> str:
    """The name of the module an operation stands in, or its own where the network's own ``forward`` does it."""
    return module_name(node) or node.name


def nodes_of(graph: GraphModule, layers: Collection[str]) -> frozenset[str]:
    """Names of the graph's operations that belong to ``layers``, and of those that only move what these give.

    A concatenation, say, of a float layer's values and others' would round them after all, on a grid they share.
    """
    passive, found = _passive(), set[str]()
    for node in graph.graph.nodes:
        moved = node.target in passive and any(source.name in found for source in node.all_input_nodes)
        if node.op == "call_function" and (moved or layer_name(node) in layers):
            found.add(node.name)
    return frozenset(found)


def _passive() -> frozenset[object]:
    from targets._int8 import PATTERNS

    return frozenset(target for pattern in PATTERNS if pattern.operator in _PASSIVE for target in pattern.overloads)


def _operation(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _is_clip(node: Node) -> bool:
    return any(name in str(node.target) for name in _CLIPS)


def _behind(node: Node) -> list[Node]:
    """What reads a node, through a clipping that it alone feeds."""
    users = list(node.users)
    return list(users[0].users) if len(users) == 1 and _is_clip(users[0]) else users


def is_fake_quantizer(prepared: GraphModule, node: Node) -> bool:
    """Whether ``node`` calls one of the prepared graph's fake quantizers."""
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    return node.op == "call_module" and isinstance(prepared.get_submodule(str(node.target)), FakeQuantizeBase)


class Scan:
    """A calibrated graph whose fake quantizers are switched on and off; the given graph is left as it was."""

    def __init__(self, prepared: GraphModule, images: Tensor) -> None:
        """``prepared``: with ranges observed; ``images``: normalised, float32 [N, C, H, W]."""
        from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase, disable_observer

        self._graph = copy.deepcopy(prepared)
        self._graph.apply(disable_observer)
        self._fakes: dict[str, Any] = {
            name: module for name, module in self._graph.named_modules() if isinstance(module, FakeQuantizeBase)
        }
        self._images = images
        self.layers = layers_of(prepared)
        self.plain = self.answers(quantized=())

    @torch.no_grad()
    def answers(self, quantized: Collection[str] | None) -> Tensor:
        """float32 logits [N, classes] with the layers ``quantized`` in integers; None: all of them."""
        names = self._fakes if quantized is None else frozenset[str]().union(*(self.layers[n][1] for n in quantized))
        with self._only(names):
            return torch.cat([self._graph(part).float() for part in torch.split(self._images, _BATCH)])

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


def sensitivity(scan: Scan, track: Track) -> list[Cost]:
    """Every layer's cost, the dearest first."""
    costs = [scan.cost(name) for name in track(list(scan.layers), "sensitivity of layers", len(scan.layers))]
    return sorted(costs, key=lambda cost: -cost.kl)


def fall_back(scan: Scan, costs: Sequence[Cost], labels: Tensor, budget: float, most: int) -> tuple[str, ...]:
    """The layers to leave in float: as few of the dearest as bring the loss of top-1 within ``budget``, ``most`` at most.

    ``labels``: int64 [N], of the images scanned.
    """
    before, left = _top1(scan.plain, labels), list[str]()
    for cost in costs[: most + 1]:
        quantized = [name for name in scan.layers if name not in left]
        if before - _top1(scan.answers(quantized), labels) <= budget + _ROUNDING or len(left) == most:
            break
        left.append(cost.layer)
    return tuple(left)


_ROUNDING = 1e-6
"""Of a share of images in float32."""


def _top1(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(1) == labels).float().mean())


def picture(costs: Sequence[Mapping[str, Any]], left: Collection[str]) -> dict[str, Any]:
    """A Plotly figure: one bar a layer in the network's order of cost, those left in float in another colour."""
    shown = list(reversed(costs[:60]))
    colours = ["#d55e00" if cost["layer"] in left else "#0072b2" for cost in shown]
    texts = [f"{cost['operation']}, same class on {100 * cost['agreement']:.1f} %" for cost in shown]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": [cost["layer"] for cost in shown],
        "x": [cost["kl"] for cost in shown],
        "hovertext": texts,
        "marker": {"color": colours},
    }
    layout = {
        "height": 80 + 18 * len(shown),
        "margin": {"l": 200, "r": 20, "t": 20, "b": 50},
        "xaxis": {"title": {"text": "divergence from the float network when this layer alone is quantized, nats"}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return {"data": [bar], "layout": layout}
