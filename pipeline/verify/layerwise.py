"""Where a file departs from the graph it was written from: every layer recomputed from what the file itself fed it.

Differences downstream of a fault are its consequences. So each node of the graph is evaluated on the values that the
*file* had at its inputs, and its result is held against the file's own: a layer is judged alone, by a tolerance of one
step of its grid, however far the two have drifted apart before it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from edgewise.library_noise import quiet_capture
from edgewise.network.graph_layers import module_name
from edgewise.targets import Inside, Precision, Target

STEPS, STEPS_IN_HALF = 1.01, 1.15
"""Steps of its grid by which a quantized value may differ from the recomputed one: one, where a tie is rounded, and in
float16 the rounding of the scale (2^-11 of up to 255 steps)."""
SHARES: Mapping[Precision, float] = {
    "float32": 1e-3, "float16": 1e-2, "int8": 1e-3, "int8-weights": 5e-2, "palette": 0.5,
}  # fmt: skip
"""Share of a float value's largest magnitude by which it may differ: sums in other orders and widths, coarser weights."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One value that both the graph and the running file have."""

    name: str
    """The layer's name in the network where it has one, else its operation."""
    node: str
    """In the captured graph."""
    operation: str
    unit: str
    """What ``worst`` counts: ``steps`` of the quantization grid, or ``share`` of the value's largest magnitude."""
    worst: float
    """Largest difference between the file and the graph, the layer recomputed from the file's own inputs."""
    changed: float
    """Share of elements that differ by more than half a step, or a tenth of the tolerance."""
    tolerance: float
    drift_db: float | None
    """Signal to noise of the file against the graph, all layers before included; None: equal in every bit."""
    quantization_db: float | None
    """Signal to noise of the graph against the float network; None: equal; not a number: no such value is known."""

    @property
    def diverges(self) -> bool:
        """Whether the file computes something else here than the graph."""
        return not self.worst <= self.tolerance


def compare(inside: Inside, images: Tensor, precision: Precision, plain: Mapping[str, Tensor]) -> list[Layer]:
    """Every common value of graph and file in the graph's order, for ``images`` [N, ...] as the file takes them.

    ``plain``: node -> the float network's values, where they are known.
    """
    graph = module_of(inside.program)
    alone, together = (_Recompute(graph, given, kept=inside.values) for given in (inside.values, {}))
    parts = [(alone.of(image[None], index), together.of(image[None], index)) for index, image in enumerate(images)]
    tolerance = (
        (STEPS_IN_HALF, max(SHARES[precision], SHARES["float16"])) if inside.half else (STEPS, SHARES[precision])
    )
    layers = []
    for node in graph.graph.nodes:
        if node.name in inside.values:
            value = inside.values[node.name]
            expected = torch.cat([part[0][node.name].float() for part in parts])
            cumulative = torch.cat([part[1][node.name].float() for part in parts])
            layers.append(
                _compare_layer(node, value, expected, cumulative, tolerance, plain.get(_before_quantization(node).name))
            )
    return layers


def first_divergent(layers: Sequence[Layer]) -> Layer | None:
    """The first layer, in the graph's order, that the file computes otherwise."""
    return next((layer for layer in layers if layer.diverges), None)


def layers_apart(
    target: Target, path: Path, program: ExportedProgram, images: Tensor, precision: Precision
) -> list[Layer] | None:
    """The layers of a file that compute something else than the program's, each from the file's own inputs to it.

    ``images`` [N, ...] as the file takes them. None where the target lets no intermediate value out, or none that both
    have. Raises TargetError for a file that the target cannot read.
    """
    if target.inside is None:
        return None
    layers = compare(target.inside(path, program, images), images, precision, {})
    return [layer for layer in layers if layer.diverges] if layers else None


def module_of(program: ExportedProgram) -> GraphModule:
    """The program as a graph whose nodes keep their names."""
    with quiet_capture():
        graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


@torch.inference_mode()
def values_of(graph: GraphModule, images: Tensor) -> dict[str, Tensor]:
    """Node -> its tensor for ``images`` [N, C, H, W], one image at a time."""
    recompute = _Recompute(graph, {})
    parts = [recompute.of(image[None], index) for index, image in enumerate(images)]
    return {name: torch.cat([part[name].float() for part in parts]) for name in parts[0] if parts[0][name].dim()}


class _Recompute(Interpreter):
    """Evaluates a graph, and goes on from given values in place of its own.

    ``kept``: the nodes whose results are returned; None: all, which are several times as many and large as a file lets out.
    """

    def __init__(self, graph: GraphModule, given: Mapping[str, Tensor], kept: Container[str] | None = None) -> None:
        super().__init__(graph)
        self._kept = kept
        self._given = _at_every_reader(graph, given)
        self._own: dict[str, Tensor] = {}
        self._index = 0

    @torch.inference_mode()
    def of(self, image: Tensor, index: int) -> dict[str, Tensor]:
        """Node -> what the graph computes there for one image [1, C, H, W], number ``index`` of the given values."""
        self._own, self._index = {}, index
        self.run(image)
        return self._own

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor):
            if self._kept is None or n.name in self._kept:
                self._own[n.name] = result
            if n.name in self._given:
                # Image after image, whatever the first dimension counts: a transformer's tokens lie in it as well.
                value = self._given[n.name].reshape(-1, result.numel())[self._index]
                return value.reshape(result.shape).to(result.dtype)
        return result


def _at_every_reader(graph: GraphModule, values_by_node: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``values_by_node``, a quantized value also at its other dequantizations: a file has one value where the graph has several."""
    values = dict(values_by_node)
    for node in graph.graph.nodes:
        if node.name in values_by_node and "dequantize_per_tensor" in str(node.target):
            twins = [other for other in node.args[0].users if (other.target, other.args) == (node.target, node.args)]
            values |= {twin.name: values_by_node[node.name] for twin in twins if twin.name not in values_by_node}
    return values


def _compare_layer(
    node: Node,
    value: Tensor,
    expected: Tensor,
    cumulative: Tensor,
    tolerance: tuple[float, float],
    plain: Tensor | None,
) -> Layer:
    value, step = value.reshape(expected.shape), step_of(node)
    difference = torch.nan_to_num((value - expected).abs(), nan=math.inf)
    if step is None:
        unit, limit, size = "share", tolerance[1], max(float(expected.abs().max()), 1e-12)
        threshold = 0.1 * limit * size
    else:
        unit, limit, size, threshold = "steps", tolerance[0], step, 0.5 * step
    source = source_of(node)
    return Layer(
        name=module_name(source) or source.name,
        node=node.name,
        operation=str(getattr(source.target, "__name__", source.target)).split(".")[0],
        unit=unit,
        worst=float(difference.max()) / size,
        changed=float((difference > threshold).float().mean()),
        tolerance=limit,
        drift_db=_decibels(value, cumulative),
        quantization_db=math.nan if plain is None else _decibels(cumulative, plain.reshape(cumulative.shape)),
    )


def _decibels(value: Tensor, reference: Tensor) -> float | None:
    noise, signal = float((value - reference).square().sum()), float(reference.square().sum())
    if noise == 0 or not math.isfinite(noise):
        return None if noise == 0 else -math.inf
    return 10 * math.log10(signal / noise) if signal else 0.0


def step_of(node: Node) -> float | None:
    """The scale of a per-tensor dequantization; None for any other node."""
    scale = node.args[1] if "dequantize_per_tensor" in str(node.target) else None
    return float(scale) if isinstance(scale, float | int) else None


def _before_quantization(node: Node) -> Node:
    """What a dequantized value was before its quantization."""
    while "quantize_per_tensor" in str(node.target) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


_BEHIND = ("quantize_per_tensor", "relu", "hardtanh", "clamp")


def source_of(node: Node) -> Node:
    """The operation whose result a value is, without the quantization and the clipping behind it."""
    while any(name in str(node.target) for name in _BEHIND):
        before = node.args[0]
        if not isinstance(before, Node) or before.op != "call_function":
            break
        node = before
    return node
