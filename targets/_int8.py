"""The one int8 quantizer: a table of operator patterns over torchao's pt2e interface.

A quantized network is described by *places*: a tensor where it is produced (a graph node) or where one operator reads
it (an edge). Every pattern says which places exist, and which must have the same scale; each group of places gets one
observer. Grouping is done here, not by torchao's implicit sharing, whose order of unions can end in a cycle.

Scheme: weights symmetric per output channel (zero point 0), activations int8 per tensor, biases float in the graph (a
target rounds them to int32 with scale s_x·s_w). Jacob et al. 2018 (arXiv 1712.05877), section 2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from edgewise.targets import Grid, TargetError
from edgewise.targets._fake_quantize import ActivationFakeQuantize, FixedFakeQuantize, PerChannelWeightFakeQuantize
from edgewise.targets._plain_operators import CLAMPS, clip_bounds
from edgewise.targets._rewrite import Rule, attention_as_products, rewrite_graph, silu_as_product

WEIGHT_SCALE_FLOOR = 2.0**-14
"""Smallest weight scale: float16's smallest normal number, as some runtimes keep scales; biases then fit int32."""
ACTIVATION_SCALE_FLOOR = 2.0**-12

_aten = torch.ops.aten


@dataclass
class _Plan:
    """The places of one graph, grouped: places in one group get one observer."""

    places: dict[EdgeOrNode, QuantizationSpecBase] = field(default_factory=dict)
    weights: dict[tuple[Node, Node], int] = field(default_factory=dict)
    transparent: dict[Node, EdgeOrNode] = field(default_factory=dict)
    """Operators that change no value at inference (dropout) -> the place of their input."""
    claimed: set[Node] = field(default_factory=set)
    """Activation functions that belong to the pattern of the operator before them."""
    lazy: set[Node] = field(default_factory=set)
    """Operators whose output is quantized only if an int8 operator reads it."""
    parent: dict[EdgeOrNode, EdgeOrNode] = field(default_factory=dict)

    def root(self, place: EdgeOrNode) -> EdgeOrNode:
        while (above := self.parent.get(place, place)) != place:
            place = above
        return place

    def tie(self, first: EdgeOrNode, second: EdgeOrNode) -> None:
        self.parent[self.root(second)] = self.root(first)


Annotator = Callable[["Int8Quantizer", _Plan, Node], None]


@dataclass(frozen=True)
class Pattern:
    """One row of the table: the operators of a name, and how their tensors are quantized."""

    operator: str
    """The name that ``Int8Quantizer.operators`` switches on."""
    overloads: tuple[object, ...]
    annotate: Annotator


@dataclass(frozen=True)
class Int8Quantizer(Quantizer):
    """Annotates a captured graph for ``prepare_pt2e`` (``qat=False``) or ``prepare_qat_pt2e`` (``qat=True``).

    The graph is that of ``torch.export.export(model, (x,)).module(check_guards=False)`` with batch norms already folded
    into the convolutions. After training, run one batch before ``convert_pt2e`` if weights were replaced (averaged,
    loaded): weight scales are those of the last forward.
    """

    grid: Grid = field(default_factory=Grid)
    operators: frozenset[str] | None = None
    """Patterns to quantize, in place of the grid's own set."""
    qat: bool = False
    float_nodes: frozenset[str] = frozenset()
    """Names of graph nodes to leave in floating point."""

    def __post_init__(self) -> None:
        operators = {pattern.operator for pattern in PATTERNS}
        if unknown := self.switched_on - operators:
            raise TargetError(f"no int8 pattern called {sorted(unknown)}; choices: {', '.join(sorted(operators))}")
        if self.grid.weight_bits not in range(2, 9):
            raise TargetError(f"weight_bits must be 2 to 8, found {self.grid.weight_bits}")

    @property
    def switched_on(self) -> frozenset[str]:
        """Names of the patterns in use."""
        return self.grid.operators if self.operators is None else self.operators

    @cached_property
    def activation(self) -> QuantizationSpec:
        """int8 per tensor, −128 … 127 (affine) or −127 … 127 with zero point 0."""
        symmetric = self.grid.symmetric_activations
        observer = ActivationFakeQuantize if self.qat else HistogramObserver
        arguments = {"observer": MovingAverageMinMaxObserver} if self.qat else {}
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127 if symmetric else -128,
            quant_max=127,
            qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
            observer_or_fake_quant_ctr=observer.with_args(eps=ACTIVATION_SCALE_FLOOR, **arguments),
        )

    def weight(self, channel_axis: int) -> QuantizationSpec:
        """Symmetric, one scale for each index of ``channel_axis``, in the grid's bits."""
        limit = 2 ** (self.grid.weight_bits - 1) - 1
        observer = PerChannelWeightFakeQuantize if self.qat else PerChannelMinMaxObserver
        arguments = {"observer": PerChannelMinMaxObserver} if self.qat else {}
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-limit,
            quant_max=limit,
            qscheme=torch.per_channel_symmetric,
            ch_axis=channel_axis,
            observer_or_fake_quant_ctr=observer.with_args(eps=WEIGHT_SCALE_FLOOR, **arguments),
        )

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Take apart, in place, what has no pattern of its own in use but consists of operators that have one."""
        rules: dict[object, Rule] = dict(CLAMPS)
        if "silu" not in self.switched_on and {"sigmoid", "mul"} <= self.switched_on:
            rules |= dict.fromkeys(_all_overloads(["silu"]), silu_as_product)
        if "attention" not in self.switched_on and "matmul" in self.switched_on:
            rules[_aten.scaled_dot_product_attention.default] = attention_as_products
        if rewrite_graph(model.graph, rules):
            model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Attach a quantization annotation to every node of a pattern that is switched on."""
        _refuse_batch_norm(model)
        table = {target: row for row in PATTERNS if row.operator in self.switched_on for target in row.overloads}
        plan = _Plan()
        for node in model.graph.nodes:
            row = table.get(node.target)
            if row is not None and node not in plan.claimed and node.name not in self.float_nodes:
                row.annotate(self, plan, node)
        for node in plan.lazy:
            if not any((node, user) in plan.places for user in node.users):
                del plan.places[node]
        self._write(model, plan)
        return model

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
        """Put the project's own fake quantizers of a fixed scale in the place of torchao's."""
        fresh: dict[int, FixedFakeQuantize] = {}
        for place, module in edge_or_node_to_obs_or_fq.items():
            if isinstance(module, FixedQParamsFakeQuantize):
                lean = fresh.setdefault(id(module), FixedFakeQuantize(module._observer_ctr))
                edge_or_node_to_obs_or_fq[place] = lean

    def validate(self, model: GraphModule) -> None:
        """Raises TargetError for a graph that still holds a batch norm."""
        _refuse_batch_norm(model)

    def _write(self, model: GraphModule, plan: _Plan) -> None:
        """The first place of a group, in torchao's own order, holds the specification; the others refer to it."""
        specs = {plan.root(place): spec for place, spec in plan.places.items() if spec is not self.activation}
        leaders: dict[EdgeOrNode, EdgeOrNode] = {}

        def spec(place: EdgeOrNode) -> QuantizationSpecBase:
            root = plan.root(place)
            leader = leaders.setdefault(root, place)
            return specs.get(root, self.activation) if leader == place else SharedQuantizationSpec(leader)

        for node in model.graph.nodes:
            inputs: dict[Node, QuantizationSpecBase | None] = {}
            for source in node.all_input_nodes:
                if (source, node) in plan.weights:
                    inputs[source] = self.weight(plan.weights[source, node])
                elif (source, node) in plan.places:
                    inputs[source] = spec((source, node))
            output = spec(node) if node in plan.places else None
            if inputs or output is not None:
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=output, allow_implicit_sharing=False, _annotated=True
                )

    def _read(self, plan: _Plan, source: Node, node: Node) -> EdgeOrNode:
        """The place at which ``node`` reads ``source``: the tensor's own one where it has one."""
        if source in plan.transparent:
            return plan.transparent[source]
        edge = (source, node)
        plan.places.setdefault(edge, self.activation)
        for place in (source, *((source, user) for user in source.users)):
            if place in plan.places and place != edge:
                plan.tie(place, edge)
                break
        return edge

    def _produce(self, plan: _Plan, node: Node, spec: QuantizationSpecBase | None = None) -> None:
        """``node``'s output is quantized; behind an activation function that follows alone, if there is one."""
        last = node
        user = next(iter(node.users), None)
        if spec is None and len(node.users) == 1 and user is not None and _is_fused(user):
            plan.claimed.add(user)
            last = user
        plan.places[last] = spec or self.activation


def _is_fused(node: Node) -> bool:
    """Whether kernels clip so as they write their results: from 0 or from below it, by one of these names."""
    bounds = clip_bounds(node) if node.target in _FUSED else None
    return bounds is not None and bounds[0] <= 0


def _refuse_batch_norm(model: GraphModule) -> None:
    norms = [node.name for node in model.graph.nodes if "batch_norm" in str(node.target)]
    if norms:
        raise TargetError(
            f"batch norms must be folded into their convolutions before quantization; found {', '.join(norms)}. "
            "Fold the model first"
        )


def _is_float(value: object) -> bool:
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(tensor, Tensor) and tensor.dtype.is_floating_point


def _is_quantized(plan: _Plan, source: object) -> bool:
    return source in plan.places or source in plan.transparent


def _weighted_pattern(input_index: int, weight_index: int, channel_axis: int) -> Annotator:
    """Convolution or linear: activation at one argument, weight at another, activation out."""

    def annotate(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
        source, weight = node.args[input_index], node.args[weight_index]
        if isinstance(source, Node) and isinstance(weight, Node):
            quantizer._read(plan, source, node)
            plan.weights[weight, node] = channel_axis
            quantizer._produce(plan, node)

    return annotate


def _annotate_transposed(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Transposed convolution: output channels lie on axis 1; with groups they are not an axis, so it stays float."""
    groups = node.args[6] if len(node.args) > 6 else 1
    if groups == 1:
        _weighted_pattern(0, 1, 1)(quantizer, plan, node)


def _annotate_elementwise(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Every tensor argument and the output have scales of their own; with a number as an argument it stays float."""
    if all(_is_float(argument) for argument in node.args[:2]):
        for source in dict.fromkeys(node.args[:2]):
            assert isinstance(source, Node)
            quantizer._read(plan, source, node)
        quantizer._produce(plan, node)


def _annotate_sum(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """As ``_annotate_elementwise``, but the sums that a layer norm reads stay float: a transformer's shortcut path.

    Along it a few channels grow far beyond the others, so that one scale cannot hold both (Bondarenko et al. 2021,
    arXiv 2109.12948, section 3), and the layer norm computes in float anyway.
    """
    if not any(user.target is _aten.layer_norm.default for user in node.users):
        _annotate_elementwise(quantizer, plan, node)


def _annotate_product(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """As ``_annotate_elementwise``, but a product that only float operators read is not rounded."""
    _annotate_elementwise(quantizer, plan, node)
    if node in plan.places:
        plan.lazy.add(node)


def _annotate_unary(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """First argument and output, each with its own scale."""
    if _is_float(source := node.args[0]):
        assert isinstance(source, Node)
        quantizer._read(plan, source, node)
        quantizer._produce(plan, node)


def _annotate_attention(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Query, key and value, and the output; the scores inside stay float."""
    for source in dict.fromkeys(node.args[:3]):
        assert isinstance(source, Node)
        quantizer._read(plan, source, node)
    quantizer._produce(plan, node)


def _unit_interval(scale: float) -> Annotator:
    """Output between 0 and 1: a fixed scale, so that nothing has to be learned."""
    spec = FixedQParamsQuantizationSpec(
        dtype=torch.int8,
        scale=scale,
        zero_point=-128,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
    )

    def annotate(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
        if _is_float(source := node.args[0]):
            assert isinstance(source, Node)
            quantizer._read(plan, source, node)
            quantizer._produce(plan, node, spec)

    return annotate


def _same_scale(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Moves, selects or averages numbers: the output has its input's scale; a float input stays float."""
    source = node.args[0]
    if isinstance(source, Node) and _is_quantized(plan, source) and _is_float(node):
        place = quantizer._read(plan, source, node)
        plan.places[node] = quantizer.activation
        plan.tie(place, node)


def _spatial_mean(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Mean over height and width of [N, C, H, W]; other means stay float."""
    source, axes = node.args[0], node.args[1] if len(node.args) > 1 else None
    image = isinstance(source, Node) and source.meta["val"].dim() == 4
    if image and isinstance(axes, list | tuple) and sorted(int(axis) % 4 for axis in axes) == [2, 3]:
        _same_scale(quantizer, plan, node)


def _zero_padding(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Constant padding with zero, which every grid here holds exactly."""
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else 0
    if mode in ("constant", 0) and not value:
        _same_scale(quantizer, plan, node)


def _annotate_concatenation(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Concatenation: all inputs and the output share a scale; an input with a fixed scale is quantized again for it."""
    sources = [source for source in node.all_input_nodes if _is_float(source)]
    if not any(_is_quantized(plan, source) for source in sources):
        return
    plan.places[node] = quantizer.activation
    for source in sources:
        edge: EdgeOrNode = (source, node)
        place = plan.places.get(source)
        if place is not None and plan.root(source) in _fixed_roots(plan):
            plan.places[edge] = quantizer.activation
        else:
            edge = quantizer._read(plan, source, node)
        plan.tie(edge, node)


def _fixed_roots(plan: _Plan) -> set[EdgeOrNode]:
    return {plan.root(place) for place, spec in plan.places.items() if isinstance(spec, FixedQParamsQuantizationSpec)}


def _annotate_split(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Chunk or split: each part has the scale of the whole."""
    source = node.args[0]
    if isinstance(source, Node) and _is_quantized(plan, source):
        place = quantizer._read(plan, source, node)
        for part in node.users:
            if part.target is operator.getitem:
                plan.places[part] = quantizer.activation
                plan.tie(place, part)


def _annotate_clip(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """On its input's scale; from above 0 in float: XNNPACK fuses such a clip with what is before it, and then does not run."""
    bounds = clip_bounds(node)
    if bounds is not None and bounds[0] <= 0:
        _same_scale(quantizer, plan, node)


def _see_through(quantizer: Int8Quantizer, plan: _Plan, node: Node) -> None:
    """Dropout: its input is quantized, its readers take it as it comes, since it is gone at inference."""
    source = node.args[0]
    if isinstance(source, Node) and _is_quantized(plan, source):
        plan.transparent[node] = quantizer._read(plan, source, node)


_FUSED: frozenset[object] = frozenset(
    {
        _aten.relu.default,
        _aten.relu_.default,
        _aten.relu6.default,
        _aten.relu6_.default,
        _aten.hardtanh.default,
        _aten.hardtanh_.default,
    }
)
"""Activation functions that are a clipping of the range, and cost nothing behind an int8 operator."""
_CLIPS: frozenset[object] = _FUSED | {_aten.clamp.default, _aten.clamp_.default}


def _all_overloads(names: Iterable[str]) -> tuple[object, ...]:
    """Every overload of the named ATen operators, those in place too."""
    packets = [getattr(_aten, form) for name in names for form in (name, f"{name}_") if hasattr(_aten, form)]
    return tuple(getattr(packet, overload) for packet in packets for overload in packet.overloads())


_NEAR_255TH = torch.tensor(1 / 255).half().item()
"""Reaches 1, which a hard sigmoid does and a sigmoid does not, and is a number that float16 holds."""

PATTERNS = (
    Pattern("conv", _all_overloads(["conv1d", "conv2d"]), _weighted_pattern(0, 1, 0)),
    Pattern("conv_transpose", _all_overloads(["conv_transpose1d", "conv_transpose2d"]), _annotate_transposed),
    Pattern("linear", (_aten.linear.default,), _weighted_pattern(0, 1, 0)),
    Pattern("linear", (_aten.addmm.default,), _weighted_pattern(1, 2, 1)),
    Pattern("add", (_aten.add.Tensor, _aten.add_.Tensor), _annotate_sum),
    Pattern("mul", (_aten.mul.Tensor, _aten.mul_.Tensor), _annotate_elementwise),
    Pattern("cat", (_aten.cat.default, _aten.concat.default), _annotate_concatenation),
    Pattern("relu", tuple(_CLIPS), _annotate_clip),
    Pattern("pool", _all_overloads(["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"]), _same_scale),
    Pattern("mean", (_aten.mean.dim,), _spatial_mean),
    Pattern(
        "reshape", _all_overloads(["flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous"]), _same_scale
    ),
    Pattern("reshape", _all_overloads(["permute", "transpose", "slice", "clone"]), _same_scale),
    Pattern("reshape", _all_overloads(["channel_shuffle", "pixel_shuffle", "pixel_unshuffle"]), _same_scale),
    Pattern("reshape", _all_overloads(["pad", "constant_pad_nd"]), _zero_padding),
    Pattern("reshape", _all_overloads(["chunk", "split", "split_with_sizes"]), _annotate_split),
    Pattern("reshape", _all_overloads(["dropout", "dropout2d", "feature_dropout"]), _see_through),
    Pattern("silu", _all_overloads(["silu"]), _annotate_unary),
    Pattern("hardswish", _all_overloads(["hardswish"]), _annotate_unary),
    Pattern("hardsigmoid", _all_overloads(["hardsigmoid"]), _unit_interval(_NEAR_255TH)),
    Pattern("gelu", _all_overloads(["gelu"]), _annotate_unary),
    Pattern("layer_norm", (_aten.layer_norm.default,), _annotate_unary),
    Pattern("sigmoid", _all_overloads(["sigmoid"]), _unit_interval(1 / 256)),
    Pattern("softmax", _all_overloads(["softmax"]), _unit_interval(1 / 256)),
    Pattern("matmul", _all_overloads(["matmul", "bmm"]), _annotate_product),
    Pattern("attention", (_aten.scaled_dot_product_attention.default,), _annotate_attention),
)
"""The table. Order does not matter: no operator stands in two rows."""
