"""A network captured as a graph, prepared with fake quantizers, and converted."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgewise.images.sizes import open_sides
from edgewise.library_noise import quiet_capture
from edgewise.network import float16_constants, graph_layers, surgery
from edgewise.network.graph_layers import is_fake_quantizer
from edgewise.network.open_lengths import open_lengths
from edgewise.network.out_of_place import leave_inputs
from edgewise.network.regions import inline_regions
from edgewise.targets import Grid, Sizes


def carry_over(trained: GraphModule, opened: GraphModule) -> GraphModule:
    """``opened``, the same network prepared for other image sizes, with the tensors and fake quantizers of ``trained``.

    Where its image's sides are open, a network may compute the same by other operators (a pooling that rounds up, in
    place of a padding before it), so that quantizers are told by what they observe and not by their number. Raises
    RuntimeError where ``opened`` observes something that ``trained`` does not.
    """
    trained_names, opened_names = _observed_places(trained), _observed_places(opened)
    if missing := opened_names.keys() - trained_names.keys():
        raise RuntimeError(f"with open image sizes it quantizes {sorted(missing)}, whose ranges were never trained")
    for place, name in opened_names.items():
        setattr(opened, name, getattr(trained, trained_names[place]))
    quantizers = set(trained_names.values())
    theirs = {key: value for key, value in trained.state_dict().items() if key.split(".")[0] not in quantizers}
    opened.load_state_dict(opened.state_dict() | theirs)
    return opened


def _observed_places(prepared: GraphModule) -> dict[tuple[str, int, int], str]:
    """What is observed (operator, the how-manieth of its kind, the how-manieth observer of it) -> the quantizer's name."""
    observer_names: dict[tuple[str, int, int], str] = {}
    places: dict[Node, tuple[str, int]] = {}
    kinds: Counter[str] = Counter()
    observers: Counter[tuple[str, int]] = Counter()
    for node in prepared.graph.nodes:
        if is_fake_quantizer(prepared, node):
            place = places[node] = places[node.args[0]]
            observer_names[*place, observers[place]] = str(node.target)
            observers[place] += 1
        else:
            places[node] = (str(node.target), kinds[str(node.target)])
            kinds[str(node.target)] += 1
    return observer_names


@dataclass(frozen=True)
class Prepare:
    """Surgery that captures a network as a graph and puts fake quantizers into it."""

    grid: Mapping[str, Any]
    """The grid's fields."""
    input_shape: tuple[int, int, int] | list[int]
    float_layers: tuple[str, ...] | list[str] = ()
    """Names of modules whose operations stay in float."""

    def capture(self, model: nn.Module, batch: int | None = None, sizes: Sizes | None = None) -> GraphModule:
        """The prepared graph. ``batch`` None: any batch size; otherwise that size alone, as a file wants it.

        ``sizes``: the image sizes it must serve; None: the one it was trained at.
        """
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        graph = export_graph(model, tuple(self.input_shape), batch, sizes)
        quantizer = _quantizer(Grid.from_json(self.grid), graph_layers.nodes_of(graph, self.float_layers))
        with quiet_capture():
            prepared = prepare_qat_pt2e(graph, quantizer)
        assert isinstance(prepared, GraphModule)
        for operation in (*surgery.history(model), self):
            surgery.record(prepared, operation)
        return prepared


def _quantizer(grid: Grid, float_nodes: frozenset[str]) -> Any:
    from edgewise.targets._int8 import Int8Quantizer

    return Int8Quantizer(grid, operators=grid.operators, qat=True, float_nodes=float_nodes)


def export_graph(
    model: nn.Module, input_shape: tuple[int, ...], batch: int | None, sizes: Sizes | None = None
) -> GraphModule:
    """A captured graph of ``model`` in evaluation mode, on inputs [batch, *input_shape]; ``batch`` None: any.

    ``sizes``: the image sizes the graph serves; None: that of ``input_shape`` alone. What only training uses is not in
    it: no dropout, no stochastic depth, and no side classifiers with their weights.
    """
    model = copy.deepcopy(model).eval()
    example = torch.zeros(batch or 2, *input_shape, device=next(model.parameters()).device)
    open_ = open_sides(sizes, (2, 3)) | ({} if batch else {0: torch.export.Dim("batch", min=1, max=65_536)})
    with quiet_capture(), open_lengths(model):
        program = torch.export.export(model, (example,), dynamic_shapes=(open_,) if open_ else None)
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    inline_regions(graph)
    leave_inputs(graph)
    # A conversion in the network's code (``x.float()``, ``x.to(memory_format=…)``) comes with a check of its input's type,
    # which is another in mixed precision.
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()  # also drops the reads of weights that nothing uses
    graph.delete_all_unused_submodules()
    graph.recompile()  # its code names them still
    return graph


def convert(prepared: GraphModule) -> GraphModule:
    """A prepared graph as integers: quantize/dequantize pairs, weights rounded to int8. The input is left alone."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    own = copy.deepcopy(prepared)
    _put_integers_in(own)
    with quiet_capture():
        converted: GraphModule = convert_pt2e(own)
    float16_constants.round_converted(converted)
    return converted


@torch.no_grad()
def _put_integers_in(prepared: GraphModule) -> None:
    """Give weights whose integers were chosen the values of those, in place: conversion goes to the nearest ones."""
    for node in prepared.graph.nodes:
        if is_fake_quantizer(prepared, node) and isinstance(node.args[0], Node) and node.args[0].op == "get_attr":
            quantizer = prepared.get_submodule(str(node.target))
            if getattr(quantizer, "integers", None) is not None:
                weight = prepared.get_parameter(str(node.args[0].target))
                weight.copy_(quantizer(weight))
