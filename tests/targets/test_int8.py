"""The int8 quantizer: which tensors are rounded, which of them share a scale, and to which integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from edgewise.targets import COMMON_OPERATORS, GATES, PRODUCTS, Grid, TargetError
from edgewise.targets._fake_quantize import ActivationFakeQuantize, PerChannelWeightFakeQuantize
from edgewise.targets._int8 import PATTERNS, WEIGHT_SCALE_FLOOR, Int8Quantizer

QUANTIZE, DEQUANTIZE = ".quantize_per_tensor.default", ".dequantize_per_tensor.default"


class Net(nn.Module):
    """Calls ``body(self, x)``; layers are given by keyword."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._body = body

    def forward(self, x: Tensor) -> Tensor:
        return self._body(self, x)


def capture(model: nn.Module, x: Tensor) -> GraphModule:
    graph = torch.export.export(model, (x,)).module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def quantized(model: nn.Module, x: Tensor, grid: Grid | None = None, **options: object) -> GraphModule:
    """Captured, calibrated on ``x`` and converted."""
    quantizer = Int8Quantizer(grid or Grid(), **options)  # type: ignore[arg-type]
    prepare = prepare_qat_pt2e if quantizer.qat else prepare_pt2e
    prepared = prepare(capture(model.eval(), x), quantizer)
    prepared(x)
    return convert_pt2e(prepared)


def named(graph: GraphModule, name: str) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "call_function" and str(node.target).endswith(name)]


def only(graph: GraphModule, name: str) -> Node:
    (node,) = named(graph, name)
    return node


def read_with(node: Node, index: int = 0) -> tuple[float, int]:
    """Scale and zero point with which ``node`` reads its argument."""
    source = node.args[index]
    assert isinstance(source, Node) and str(source.target).endswith(DEQUANTIZE), f"{node} reads the float {source}"
    return source.args[1], source.args[2]  # type: ignore[return-value]


def written_with(node: Node) -> tuple[float, int]:
    """Scale and zero point with which ``node``'s output is rounded."""
    (user,) = node.users
    assert str(user.target).endswith(QUANTIZE), f"{node} is followed by {user}"
    return user.args[1], user.args[2]  # type: ignore[return-value]


def stays_float(node: Node) -> bool:
    around = [*node.all_input_nodes, *node.users]
    return not any("quantize_per" in str(other.target) for other in around)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (7, 63)])
def test_weights_fill_the_grid_of_each_output_channel(bits: int, limit: int, qat: bool) -> None:
    convolution = nn.Conv2d(1, 2, (1, 2), bias=False)
    convolution.weight.data = torch.tensor([[[[-2.0, 0.5]]], [[[0.5, 0.125]]]])
    graph = quantized(
        Net(lambda net, x: net.conv(x), conv=convolution), torch.randn(1, 1, 4, 4), Grid(weight_bits=bits), qat=qat
    )
    state = graph.state_dict()
    integers = next(value for value in state.values() if value.dtype == torch.int8)
    quarter = {127: 32, 63: 16}[limit]  # 31.75 and 15.75
    assert integers.flatten().tolist() == [-limit, quarter, limit, quarter]
    scales = next(value for name, value in state.items() if "_scale" in name)
    assert torch.allclose(scales, torch.tensor([2.0, 0.5]) / limit, rtol=2.0**-11)  # as float16 holds it


def test_a_dead_channel_keeps_a_scale_that_float16_can_hold() -> None:
    convolution = nn.Conv2d(1, 2, 1)
    convolution.weight.data[0] = 1e-9
    for qat in (False, True):
        state = quantized(
            Net(lambda net, x: net.conv(x), conv=convolution), torch.randn(1, 1, 4, 4), qat=qat
        ).state_dict()
        scales = next(value for name, value in state.items() if "_scale" in name)
        assert scales[0].item() == WEIGHT_SCALE_FLOOR
        assert scales[0].half().item() == WEIGHT_SCALE_FLOOR


def test_the_weights_gradient_passes_straight_through() -> None:
    rounding = PerChannelWeightFakeQuantize.with_args(
        observer=_per_channel_observer(), quant_min=-63, quant_max=63, dtype=torch.int8,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
    )()  # fmt: skip
    weight = torch.randn(3, 2, requires_grad=True)
    rounding(weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == torch.ones(3, 2).tolist()


def _per_channel_observer() -> object:
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

    return PerChannelMinMaxObserver


def test_an_activation_function_stays_inside_its_operator() -> None:
    for activation in (F.relu, F.relu6, lambda x: x.clamp(0, 3), F.hardtanh):
        graph = quantized(
            Net(lambda net, x, f=activation: f(net.conv(x)), conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6)
        )
        convolution = only(graph, "conv2d.default")
        (after,) = convolution.users
        assert "quantize" not in str(after.target)
        written_with(after)
        assert len(named(graph, ".quantize_per_tensor.default")) == 2


def test_relu_of_a_tensor_that_others_read_has_that_tensors_scale() -> None:
    net = Net(lambda net, x: (y := net.conv(x)).relu() + y, conv=nn.Conv2d(3, 4, 3))
    graph = quantized(net, torch.randn(2, 3, 6, 6))
    relu, convolution = only(graph, "relu.default"), only(graph, "conv2d.default")
    assert written_with(convolution) == read_with(relu) == written_with(relu)


def test_affine_activations_use_the_whole_range_and_relu_starts_at_its_end() -> None:
    net = Net(lambda net, x: net.conv(x).relu(), conv=nn.Conv2d(1, 1, 1, bias=False))
    net.conv.weight.data.fill_(1.0)  # type: ignore[union-attr]
    x = torch.linspace(-1, 3, 64).reshape(1, 1, 8, 8)
    graph = quantized(net, x, qat=True)
    scale, zero_point = read_with(only(graph, "conv2d.default"))
    assert scale == pytest.approx(4 / 255, rel=1e-4) and zero_point == round(-128 + 255 / 4)
    scale, zero_point = written_with(only(graph, "relu.default"))
    assert zero_point == -128 and scale == pytest.approx(3 / 255, rel=2e-2)


@pytest.mark.parametrize("qat", [False, True])
def test_symmetric_activations_have_zero_point_zero(qat: bool) -> None:
    net = Net(lambda net, x: net.conv(x).relu(), conv=nn.Conv2d(3, 4, 3))
    graph = quantized(net, torch.randn(2, 3, 6, 6), Grid(symmetric_activations=True), qat=qat)
    assert [node.args[2:5] for node in named(graph, QUANTIZE)] == [(0, -127, 127)] * 2


def test_a_residual_add_has_three_scales_and_reads_what_the_convolutions_wrote() -> None:
    net = Net(
        lambda net, x: (net.b(y := net.a(x).relu()) + y).relu(),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    graph = quantized(net, torch.randn(2, 3, 6, 6))
    add = only(graph, "add.Tensor")
    first, second = named(graph, "conv2d.default")
    assert read_with(add, 1) == written_with(next(iter(first.users))) == read_with(second)
    assert read_with(add, 0) == written_with(second)
    assert len({read_with(add, 0), read_with(add, 1), written_with(next(iter(add.users)))}) == 3


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.flatten(1),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 2),
        lambda x: x[:, :, ::2],
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: x.reshape(2, -1),
    ],
)  # fmt: skip
def test_what_moves_or_averages_numbers_keeps_their_scale(move: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda net, x: move(net.conv(x).relu()), conv=nn.Conv2d(3, 4, 3))
    graph = quantized(net, torch.randn(2, 3, 6, 6))
    scales = {node.args[1:3] for node in named(graph, QUANTIZE)[1:]}
    assert len(named(graph, QUANTIZE)) == 3 and len(scales) == 1


def test_padding_with_another_number_than_zero_stays_float() -> None:
    net = Net(lambda net, x: F.pad(net.conv(x), (1, 1, 1, 1), value=0.5), conv=nn.Conv2d(3, 4, 3))
    graph = quantized(net, torch.randn(2, 3, 6, 6))
    assert not [user for user in only(graph, "pad.default").users if "quantize" in str(user.target)]


def test_a_mean_over_tokens_stays_float() -> None:
    net = Net(lambda net, x: net.fc(x).mean(1), fc=nn.Linear(4, 4))
    graph = quantized(net, torch.randn(2, 3, 4))
    assert not [user for user in only(graph, "mean.dim").users if "quantize" in str(user.target)]


def test_moving_floats_stays_float() -> None:
    net = Net(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(12, 4))
    graph = quantized(net, torch.randn(2, 3, 4))
    flatten = only(graph, "flatten.using_ints")
    assert flatten.all_input_nodes[0].op == "placeholder"
    written_with(flatten)  # the linear layer's own rounding of its input


def test_a_concatenation_shares_one_scale() -> None:
    net = Net(lambda net, x: torch.cat([net.a(x).relu(), 10 * net.b(x)], 1), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3))
    graph = quantized(net, torch.randn(2, 3, 6, 6))
    concatenation = only(graph, "cat.default")
    sources = {node.args[1:3] for node in concatenation.all_input_nodes}
    assert sources == {written_with(concatenation)}
    assert written_with(only(graph, "relu.default")) == written_with(concatenation)


def test_tensors_that_stand_in_several_concatenations_do_not_send_the_grouping_in_circles() -> None:
    def dense(net: Net, x: Tensor) -> Tensor:
        a = net.a(x).relu()
        b = net.b(torch.cat([a, x], 1))
        c = net.c(torch.cat([b, a, x], 1))
        return torch.cat([c, b, torch.cat([a, c], 1)], 1) + 0 * torch.cat([a, a, a, a], 1)

    net = Net(dense, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(6, 3, 1), c=nn.Conv2d(9, 3, 1))
    graph = quantized(net, torch.randn(2, 3, 6, 6), qat=True)
    assert len({written_with(node) for node in named(graph, "cat.default")[:3]}) == 1


def test_the_parts_of_a_split_have_the_scale_of_the_whole() -> None:
    def halves(net: Net, x: Tensor) -> Tensor:
        first, second = net.a(x).chunk(2, 1)
        return net.b(first) + second

    graph = quantized(Net(halves, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 6, 6))
    whole = written_with(named(graph, "conv2d.default")[0])
    assert read_with(named(graph, "conv2d.default")[1]) == whole == read_with(only(graph, "add.Tensor"), 1)


def test_dropout_is_looked_through() -> None:
    net = Net(lambda net, x: net.b(net.drop(net.a(x).relu())), a=nn.Linear(4, 4), b=nn.Linear(4, 4), drop=nn.Dropout())
    graph = quantized(net, torch.randn(8, 4), qat=True)
    dropout, second = only(graph, "dropout.default"), named(graph, "linear.default")[1]
    assert second.args[0] is dropout and "dequantize" in str(dropout.args[0].target)  # type: ignore[union-attr]
    assert len(named(graph, QUANTIZE)) == 3


def test_a_number_beside_a_tensor_keeps_the_addition_in_float() -> None:
    graph = quantized(Net(lambda net, x: (x + 1) * 2), torch.randn(2, 3))
    assert all(stays_float(node) for node in (*named(graph, "add.Tensor"), *named(graph, "mul.Tensor")))


def test_a_transposed_convolution_has_its_channels_on_axis_one() -> None:
    grid = Grid(operators=COMMON_OPERATORS | {"conv_transpose"})
    net = Net(lambda net, x: net.up(x), up=nn.ConvTranspose2d(3, 5, 2))
    graph = quantized(net, torch.randn(2, 3, 6, 6), grid)
    dequantize = only(graph, "dequantize_per_channel.default")
    assert dequantize.args[3] == 1
    assert next(value for name, value in graph.state_dict().items() if "_scale" in name).shape == (5,)
    grouped = quantized(
        Net(lambda net, x: net.up(x), up=nn.ConvTranspose2d(4, 4, 2, groups=2)), torch.randn(2, 4, 6, 6), grid
    )
    assert not named(grouped, "dequantize_per_channel.default")


def test_depthwise_grouped_and_one_dimensional_convolutions_and_addmm_are_quantized() -> None:
    for layer, shape in (
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6)),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 6)),
        (nn.Conv1d(4, 8, 3), (2, 4, 6)),
    ):
        graph = quantized(Net(lambda net, x: net.layer(x), layer=layer), torch.randn(shape))
        assert len(named(graph, "dequantize_per_channel.default")) == 1
    graph = quantized(_AddMM(), torch.randn(2, 3))
    assert only(graph, "dequantize_per_channel.default").args[3] == 1


class _AddMM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


EXTRA = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "matmul": lambda x: (x @ x.transpose(-1, -2)).relu(),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}


def test_every_pattern_that_targets_may_add_is_tried_here() -> None:
    assert {pattern.operator for pattern in PATTERNS} - COMMON_OPERATORS == {*EXTRA, "conv_transpose"}


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("operator", EXTRA)
def test_an_operator_is_quantized_exactly_where_it_is_switched_on(operator: str, qat: bool) -> None:
    net = Net(lambda net, x: EXTRA[operator](net.fc(x)), fc=nn.Linear(4, 4))
    x = torch.randn(2, 3, 4)
    plain, full = quantized(net, x, qat=qat), quantized(net, x, Grid(operators=COMMON_OPERATORS | {operator}), qat=qat)
    assert len(named(full, QUANTIZE)) == len(named(plain, QUANTIZE)) + 1
    assert (full(x) - net(x)).abs().max() < 0.1


def test_a_product_that_only_float_operators_read_is_not_rounded() -> None:
    net = Net(lambda net, x: (y := net.fc(x)) @ (y @ y.transpose(-1, -2)).softmax(-1), fc=nn.Linear(4, 4))
    graph = quantized(net, torch.randn(2, 4, 4), Grid(operators=COMMON_OPERATORS | {"matmul"}))
    scores, mixed = named(graph, "matmul.default")
    assert [read_with(scores, index) for index in (0, 1)] == [written_with(only(graph, "linear.default"))] * 2
    assert not [user for user in scores.users if "quantize" in str(user.target)]
    assert read_with(mixed, 1)[0] <= 1 / 255


def test_the_shortcut_path_of_a_transformer_stays_float() -> None:
    def block(net: Net, x: Tensor) -> Tensor:
        y = net.a(x) + x
        return F.layer_norm(net.b(F.layer_norm(y, (4,))) + y, (4,))

    graph = quantized(Net(block, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(2, 3, 4))
    first, second = named(graph, "add.Tensor")
    for node in (first, second):
        assert not [user for user in node.users if user.target is torch.ops.quantized_decomposed.quantize_per_tensor]
    assert first.args[1].op == "placeholder" and second.args[1] is first  # type: ignore[union-attr]


def test_silu_is_taken_apart_into_operators_that_integers_have() -> None:
    net = Net(lambda net, x: F.silu(net.conv(x)), conv=nn.Conv2d(3, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    graph = quantized(net, x, Grid(operators=COMMON_OPERATORS | GATES), qat=True)
    product = only(graph, "mul.Tensor")
    assert not named(graph, "silu.default") and read_with(product, 1) == (1 / 256, -128)
    assert read_with(product, 0) == written_with(only(graph, "conv2d.default"))
    assert (graph(x) - net(x)).abs().max() < 4 * written_with(product)[0]
    whole = quantized(net, x, Grid(operators=COMMON_OPERATORS | GATES | {"silu"}))
    assert written_with(only(whole, "silu.default"))


def test_attention_is_taken_apart_where_products_are_quantized() -> None:
    net = Net(lambda net, x: F.scaled_dot_product_attention(*[net.fc(x).reshape(2, 5, 2, 4).transpose(1, 2)] * 3),
              fc=nn.Linear(8, 8))  # fmt: skip
    x = torch.randn(2, 5, 8)
    graph = quantized(net, x, Grid(operators=COMMON_OPERATORS | PRODUCTS))
    assert len(named(graph, "matmul.default")) == 2 and not named(graph, "scaled_dot_product_attention.default")
    assert (graph(x) - net(x)).abs().max() < 0.05
    causal = Net(lambda net, x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert named(quantized(causal, x, Grid(operators=COMMON_OPERATORS | PRODUCTS)), "attention.default")


@pytest.mark.parametrize(("operator", "step"), [("sigmoid", 1 / 256), ("softmax", 1 / 256), ("hardsigmoid", 1 / 255)])
def test_outputs_between_zero_and_one_have_a_fixed_scale(operator: str, step: float) -> None:
    net = Net(lambda net, x: EXTRA[operator](net.fc(x)), fc=nn.Linear(4, 4))
    for qat in (False, True):
        graph = quantized(net, torch.randn(2, 3, 4), Grid(operators=COMMON_OPERATORS | {operator}), qat=qat)
        assert named(graph, QUANTIZE)[-1].args[1:5] == (pytest.approx(step, rel=2e-3), -128, -128, 127)


def test_a_fixed_scale_does_not_clip_what_it_is_concatenated_with() -> None:
    net = Net(lambda net, x: torch.cat([torch.sigmoid(net.a(x)), net.b(x)], 1), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    net.b.weight.data *= 20  # type: ignore[operator]
    x = torch.randn(64, 4)
    graph = quantized(net, x, Grid(operators=COMMON_OPERATORS | {"sigmoid"}))
    assert graph(x).max() > 0.8 * net(x).max() > 5


@pytest.mark.parametrize("bits", [7, 8])
def test_the_converted_graph_computes_what_the_training_saw(bits: int) -> None:
    net = Net(
        lambda net, x: net.fc(F.adaptive_avg_pool2d((net.b(net.a(x).relu()) + net.a(x)).relu(), 1).flatten(1)),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 3, padding=1),
        fc=nn.Linear(8, 5),
    )
    x = torch.randn(16, 3, 8, 8)
    prepared = prepare_qat_pt2e(capture(net, x), Int8Quantizer(Grid(weight_bits=bits), qat=True))
    optimiser = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(5):
        optimiser.zero_grad()
        prepared(x).square().sum().backward()
        optimiser.step()
    move_exported_model_to_eval(prepared)
    for module in prepared.modules():
        if isinstance(module, ActivationFakeQuantize):
            module.disable_observer()
    seen = prepared(x)
    converted = convert_pt2e(prepared)
    assert (converted(x) - seen).abs().max() <= 1e-5 * seen.abs().max() + named(converted, QUANTIZE)[-1].args[1]
    assert (converted(x) == seen).float().mean() > 0.9


def test_a_state_learned_at_any_batch_size_fits_the_graph_of_batch_one() -> None:
    net = Net(lambda net, x: net.fc(net.conv(x).relu().mean((2, 3))), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    dynamic = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes).module(check_guards=False)
    learned = prepare_qat_pt2e(dynamic, Int8Quantizer(qat=True))
    x = torch.randn(5, 3, 8, 8)
    learned(x)
    single = prepare_qat_pt2e(capture(net, x[:1]), Int8Quantizer(qat=True))
    single.load_state_dict(learned.state_dict())
    converted = convert_pt2e(single)
    assert torch.equal(torch.cat([converted(image[None]) for image in x]), convert_pt2e(learned)(x))


def test_named_nodes_stay_float() -> None:
    net = Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    graph = quantized(net, torch.randn(2, 4), float_nodes=frozenset({"linear_1"}))
    first, second = named(graph, "linear.default")
    assert read_with(first) and second.all_input_nodes[1].op == "get_attr"


def test_a_batch_norm_is_refused() -> None:
    net = Net(lambda net, x: net.norm(net.conv(x)), conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    with pytest.raises(TargetError, match=r"batch norms must be folded.*found batch_norm.*Fold the model"):
        prepare_qat_pt2e(capture(net, torch.randn(2, 3, 6, 6)), Int8Quantizer(qat=True))


def test_an_unknown_pattern_and_a_wrong_width_are_refused() -> None:
    with pytest.raises(TargetError, match=r"no int8 pattern called \['convolution'\]; choices: .*conv"):
        Int8Quantizer(operators=frozenset({"convolution"}))
    with pytest.raises(TargetError, match="weight_bits must be 2 to 8, found 9"):
        Int8Quantizer(Grid(weight_bits=9))


def test_no_operator_stands_in_two_rows() -> None:
    overloads = [overload for pattern in PATTERNS for overload in pattern.overloads]
    assert len(overloads) == len(set(overloads))
