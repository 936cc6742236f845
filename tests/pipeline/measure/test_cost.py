"""Costs against numbers worked out by hand, and against the published ones of whole networks."""

import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import models
from edgewise.errors import RequestError
from edgewise.measure.cost.geometry import Window
from edgewise.measure.cost.layers import analyze, separable_candidates
from edgewise.measure.cost.picture import kind_of, write_picture
from edgewise.measure.cost.show import layer_table, si_amount, size_of, to_json
from edgewise.measure.cost.totals import count_costs


class Lambda(nn.Module):
    """A network that is one function, with whatever submodules it needs."""

    def __init__(self, function: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x, **self.parts)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


def captured(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return torch.export.export(model, (torch.randn(shape),)).module(check_guards=False)


# --- MACs ---


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 3 * 8 * 9 * 10 * 12),
        (nn.Conv2d(4, 6, (3, 5), stride=2, bias=False), (4, 9, 9), 4 * 6 * 15 * 4 * 3),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5), 2 * 8 * 9 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5), 4 * 9 * 25),
        (nn.Conv2d(1, 2, 3, dilation=2), (1, 7, 7), 2 * 9 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
        (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 7 * 5),
        (nn.Linear(7, 5, bias=False), (2, 3, 7), 2 * 3 * 7 * 5),
    ],
)
def test_macs_of_one_layer(layer: nn.Module, shape: tuple[int, int, int], macs: int) -> None:
    assert count_costs(layer, shape).macs == macs


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: F.conv2d(x, torch.ones(5, 4, 1, 1)), 4 * 5 * 6 * 8),
        (lambda x: x @ x.transpose(-1, -2), 4 * 6 * 8 * 6),
        (lambda x: torch.einsum("nchw,ndhw->ncd", x, x), 4 * 4 * 6 * 8),
        (lambda x: torch.mv(torch.ones(3, 8), x.reshape(-1, 8)[0]), 3 * 8),
        (lambda x: torch.baddbmm(torch.ones(1, 6, 6), x[:, 0], x[:, 0].mT), 6 * 8 * 6),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 2 * 4 * 6 * 8 * 6),
        (lambda x: F.conv1d(x[:, 0], torch.ones(2, 6, 3)), 2 * 6 * 3 * 6),
        (lambda x: F.relu(F.avg_pool2d(x, 2) + 1) * 2, 0),
    ],
)
def test_macs_of_functions(function: Callable[[Tensor], Tensor], macs: int) -> None:
    assert count_costs(Lambda(function), (4, 6, 8)).macs == macs


def test_multi_head_attention_is_counted_by_its_parts_in_evaluation_too() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    net = Lambda(lambda x, encoder: encoder(x.flatten(2).transpose(1, 2)), encoder=encoder)
    tokens = 16
    assert count_costs(net, (32, 4, 4)).macs == tokens * (4 * 32 * 32 + 2 * 32 * 64) + 2 * tokens * tokens * 32


def test_inference_mode_inside_a_network_hides_nothing() -> None:
    def forward(x: Tensor, conv: nn.Module) -> Tensor:
        with torch.inference_mode():
            return conv(x)

    assert count_costs(Lambda(forward, conv=nn.Conv2d(1, 2, 3)), (1, 5, 5)).macs == 2 * 9 * 9


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet20", 269_722, 40_551_040),
        ("resnet56", 853_018, 125_485_696),
        ("resnet18", 11_689_512, 1_814_073_344),
        ("mobilenet_v2", 3_504_872, 300_774_272),
    ],
)
def test_published_totals(name: str, params: int, macs: int) -> None:
    """Torchvision prints 1.814 and 0.301 G for the ImageNet two; the CIFAR two have He et al.'s padded shortcuts."""
    spec = models.get(name)
    totals = count_costs(spec.build(), spec.input_shape)
    assert (totals.params, totals.macs) == (params, macs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "giga"), [("resnet50", 4.089), ("efficientnet_b0", 0.386), ("convnext_tiny", 4.456), ("vit_b_16", 17.564)]
)
def test_published_totals_of_large_networks(name: str, giga: float) -> None:
    spec = models.get(name)
    assert round(count_costs(spec.build(), spec.input_shape).macs / 1e9, 3) == giga


# --- parameters and memory ---


def test_a_shared_parameter_is_counted_once() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    net = nn.Sequential(layer, layer)
    found = analyze(net, (2, 4, 4))
    assert found.totals.params == 36
    assert [row.params for row in found.layers] == [36, 0]
    assert [row.name for row in found.layers] == ["0", "0#2"]
    assert found.totals.macs == 2 * 36 * 16


def test_weight_bytes_hold_buffers_and_follow_the_data_type() -> None:
    conv = nn.Conv2d(1, 1, 3, bias=False)
    assert count_costs(conv, (1, 5, 5)).weight_bytes == 9 * 4
    assert count_costs(conv.half(), (1, 5, 5)).weight_bytes == 9 * 2
    assert count_costs(nn.BatchNorm2d(3), (3, 5, 5)).weight_bytes == 4 * 3 * 4 + 8  # and the count of batches, int64


def test_peak_of_a_chain_is_its_widest_neighbours() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 1, 1))
    assert count_costs(net, (1, 10, 10)).peak_activation_bytes == (4 + 3) * 100 * 4


def test_a_shortcut_is_alive_across_its_block() -> None:
    net = Lambda(lambda x, a, b: x + b(a(x)), a=nn.Conv2d(2, 4, 1), b=nn.Conv2d(4, 2, 1))
    assert count_costs(net, (2, 5, 5)).peak_activation_bytes == (2 + 4 + 2) * 25 * 4


def test_views_and_work_in_place_cost_no_memory() -> None:
    assert count_costs(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), (2, 5, 5)).peak_activation_bytes == 200
    assert count_costs(nn.ReLU(), (2, 5, 5)).peak_activation_bytes == 400


def test_the_unread_indices_of_a_pooling_are_not_kept() -> None:
    assert count_costs(nn.MaxPool2d(2), (1, 4, 4)).peak_activation_bytes == (16 + 4) * 4


def test_results_stay_alive_to_the_end() -> None:
    net = Lambda(lambda x: (early := x + 1, (early * 2).sum().reshape(1) * 3))
    assert (
        count_costs(net, (1, 10, 10)).peak_activation_bytes == 2 * 400 + 4
    )  # the first result, what is summed, and the sum
    assert analyze(net, (1, 10, 10)).layers[-1].alive_bytes == 400 + 4 + 4


def test_what_comes_from_weights_alone_is_no_activation() -> None:
    net = Lambda(lambda x, conv: F.conv2d(x, conv.weight * 2 + 1), conv=nn.Conv2d(1, 1, 3, bias=False))
    found = analyze(net, (1, 6, 6))
    assert [(row.operator, row.params, row.module) for row in found.layers] == [("conv2d", 9, "parts.conv")]
    assert found.totals.peak_activation_bytes == (36 + 16) * 4


# --- the model is left as it was; captured graphs ---


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Conv2d(1, 1, 1)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.random.get_rng_state()
    count_costs(net, (1, 4, 4))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_captured_graph_gives_the_rows_of_the_module(batch: int) -> None:
    net = small_net().eval()
    direct, graph = analyze(net, (3, 8, 8)), analyze(captured(net, (batch, 3, 8, 8)), (3, 8, 8))
    assert graph.totals == direct.totals
    for ours, theirs in zip(direct.layers, graph.layers, strict=True):
        assert (ours.operator, ours.output, ours.macs, ours.params, ours.alive_bytes, ours.field) == (
            (theirs.operator, theirs.output, theirs.macs, theirs.params, theirs.alive_bytes, theirs.field)
        )
    assert [row.name for row in graph.layers] == ["0", "1", "relu", "max_pool2d", "5"]


def test_a_graph_with_training_batch_norm_over_one_position_keeps_its_batch() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3)).train()
    assert count_costs(captured(net, (4, 2, 5, 5)), (2, 5, 5)).macs == 6


def test_a_fake_quantizer_is_no_layer_and_no_tensor() -> None:
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    conv, rounds = nn.Conv2d(2, 3, 1), FakeQuantize(MovingAverageMinMaxObserver)
    plain, rounded = analyze(nn.Sequential(conv), (2, 4, 4)), analyze(nn.Sequential(rounds, conv), (2, 4, 4))
    assert [row.operator for row in rounded.layers] == ["conv2d"]
    assert rounded.totals.peak_activation_bytes == plain.totals.peak_activation_bytes == (2 + 3) * 16 * 4


@pytest.mark.slow
def test_fake_quantization_changes_neither_the_sums_nor_its_own_ranges() -> None:
    quantize = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_qat=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantize.prepare_qat_pt2e(captured(net, (2, 3, 8, 8)), quantizer)
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    found, plain = analyze(prepared, (3, 8, 8)), analyze(net, (3, 8, 8))
    assert (found.totals.params, found.totals.macs) == (plain.totals.params, plain.totals.macs)
    assert found.totals.peak_activation_bytes == plain.totals.peak_activation_bytes
    assert [row.operator for row in found.layers] == [row.operator for row in plain.layers]
    assert [row.params for row in found.layers] == [row.params for row in plain.layers]
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.state_dict().items())


def test_copying_a_captured_graph_warns_of_nothing() -> None:
    graph = captured(small_net().eval(), (1, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_costs(graph, (3, 8, 8))


# --- errors ---


def test_an_image_too_small_names_the_layer_and_its_shape() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)))
    with pytest.raises(RequestError, match=r"layer '1\.1' \(Conv2d\), which was given \(1, 4, 1, 1\).*[Ii]nput size"):
        analyze(net, (3, 4, 4))


def test_an_image_with_other_channels_names_the_first_layer() -> None:
    with pytest.raises(RequestError, match=r"layer '0' \(Conv2d\), which was given \(1, 1, 8, 8\)"):
        count_costs(small_net(), (1, 8, 8))


def test_a_graph_that_fails_names_the_operator() -> None:
    with pytest.raises(RequestError, match=r"operator aten::convolution on shapes \(\(1, 4, 8, 8\), \(8, 3, 3, 3\)\)"):
        count_costs(captured(small_net().eval(), (1, 3, 8, 8)), (4, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), (1, 3, 8, 8)])
def test_an_input_shape_that_is_none_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="channels, height, width"):
        count_costs(small_net(), shape)  # type: ignore[arg-type]


# --- geometry ---


def test_the_output_size_formula() -> None:
    window = Window(kernel=(3, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    assert window.output_size((7, 9)) == (4, 5)
    ceiled = Window(kernel=(2, 3), stride=(2, 2), padding=(0, 1), dilation=(1, 1), ceil_mode=True)
    assert ceiled.output_size((7, 6)) == (4, 4)
    assert Window(kernel=(1,), stride=(2,), padding=(0,), dilation=(1,), ceil_mode=True).output_size((4,)) == (2,)
    grown = Window(kernel=(3,), stride=(2,), padding=(1,), dilation=(1,), transposed=True, output_padding=(1,))
    assert grown.output_size((5,)) == (10,)


@pytest.mark.parametrize("size", [9, 10, 11, 12])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_formula_agrees_with_poolings_that_round_up(size: int, padding: int) -> None:
    net = nn.Sequential(nn.MaxPool2d(3, 2, padding, ceil_mode=True), nn.AvgPool2d(2, 3, padding, ceil_mode=True))
    assert len(analyze(net, (1, size, size)).layers) == 2  # each row checks the formula against the real shape


def fields(net: nn.Module, shape: tuple[int, int, int]) -> list[tuple[float, float]]:
    """Receptive field and jump along the height, layer by layer."""
    return [(row.field.size[0], row.field.jump[0]) for row in analyze(net, shape).layers if row.field]


def test_receptive_fields_of_a_chain() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, dilation=2), nn.AdaptiveAvgPool2d(1)
    )
    # 7 at 2; 7 + 2·2 = 11 at 4; 11 + 4·4 = 27 at 4; 32/4 - 4 = 4 positions: 27 + 3·4 = 39
    assert fields(net, (1, 32, 32)) == [(7, 2), (11, 4), (27, 4), (39, 16)]


def test_a_receptive_field_takes_the_longest_path() -> None:
    net = Lambda(lambda x, a, b: a(x) + b(x), a=nn.Conv2d(1, 1, 3, 2, 1), b=nn.Conv2d(1, 1, 5, 2, 2))
    assert fields(net, (1, 8, 8)) == [(3, 2), (5, 2), (5, 2)]


def test_height_and_width_have_fields_of_their_own() -> None:
    [row] = analyze(nn.Conv2d(1, 1, (3, 5), (1, 2)), (1, 9, 9)).layers
    assert row.field is not None
    assert (row.field.size, row.field.jump) == ((3, 5), (1, 2))


def test_a_flattened_image_is_seen_whole_and_tokens_are_not_mixed_by_a_linear_layer() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    flat = nn.Sequential(conv, nn.Flatten(), nn.Linear(2 * 8 * 8, 4))
    assert fields(flat, (1, 8, 8))[-1] == (3 + 7, 8)
    tokens = Lambda(
        lambda x, conv, linear: linear(conv(x).flatten(2).transpose(1, 2)), conv=conv, linear=nn.Linear(2, 4)
    )
    assert fields(tokens, (1, 8, 8))[-1] == (3, 1)


def test_attention_and_a_gate_see_the_whole_image() -> None:
    attend = Lambda(lambda x: (t := x.flatten(2).mT.unsqueeze(1), F.scaled_dot_product_attention(t, t, t))[1])
    assert fields(attend, (4, 6, 6))[-1] == (6, 1)
    gate = Lambda(lambda x, conv: (y := conv(x)) * y.mean((2, 3), keepdim=True), conv=nn.Conv2d(1, 1, 3, 2, 1))
    assert fields(gate, (1, 8, 8)) == [(3, 2), (3 + 3 * 2, 8), (9, 2)]


def test_slices_and_borders_keep_the_grid_right() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    sliced = Lambda(lambda x, conv: conv(F.relu(x[:, :, ::2, ::2])), conv=conv)
    assert fields(sliced, (1, 8, 8)) == [(1, 2), (5, 2)]
    padded = Lambda(lambda x, conv: conv(F.pad(x, (0, 1, 0, 1))), conv=nn.Conv2d(1, 1, 2))
    assert fields(padded, (1, 8, 8)) == [(1, 1), (2, 1)]


def test_enlarging_makes_positions_closer() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.PixelShuffle(2)
    )
    # 3 at 2; nearest: at 1; ceil(4/2) = 2 taps: 3 + 1·1 = 4 at 1/2; shuffled: at 1/4
    assert fields(net, (1, 8, 8)) == [(3, 2), (3, 1), (4, 0.5), (4, 0.25)]


# --- the rows ---


def test_rows_of_a_small_network() -> None:
    found = analyze(small_net(), (3, 8, 8))
    assert [(row.name, row.operator, row.output) for row in found.layers] == [
        ("0", "conv2d", (1, 8, 8, 8)),
        ("1", "batch_norm", (1, 8, 8, 8)),
        ("2", "relu", (1, 8, 8, 8)),
        ("3", "max_pool2d", (1, 8, 4, 4)),
        ("5", "linear", (1, 10)),
    ]
    conv, norm, _, pool, linear = found.layers
    assert (conv.params, norm.params, linear.params) == (216, 16, 1290)
    assert (conv.macs, linear.macs) == (216 * 64, 1280)
    assert conv.inputs == ((1, 3, 8, 8),)
    assert linear.inputs[0] == (1, 8, 4, 4) or linear.inputs[0] == (1, 128)
    assert pool.window == Window(kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1))
    assert conv.activation_bytes == 8 * 64 * 4
    assert conv.intensity == 2 * 216 * 64 / (4 * (3 * 64 + 216 + 8 * 64))
    assert conv.params_share == 216 / 1522
    assert conv.macs_share + linear.macs_share == 1


def test_functions_are_rows_named_by_the_module_around_them() -> None:
    net = nn.Sequential(Lambda(lambda x: F.relu(x) + x), Lambda(lambda x: torch.cat([x, x + 1], 1)))
    rows = analyze(net, (2, 4, 4)).layers
    assert [row.name for row in rows] == ["0.relu", "0.add", "1.add", "1.cat"]
    assert rows[1].inputs == ((1, 2, 4, 4), (1, 2, 4, 4))
    assert rows[3].output == (1, 4, 4, 4)


def test_padding_inside_a_convolution_belongs_to_it() -> None:
    [row] = analyze(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)).layers
    assert (row.operator, row.inputs, row.output) == ("conv2d", ((1, 2, 5, 5),), (1, 3, 5, 5))


def test_parameters_that_inference_does_not_use_are_named() -> None:
    net = Lambda(lambda x, main, aux: (main(x), aux(x)) if main.training else main(x), main=nn.ReLU(), aux=nn.PReLU())
    found = analyze(net.train(), (1, 4, 4))
    assert found.unused == ("parts.aux.weight",)
    assert found.totals.params == 1
    assert [row.operator for row in found.layers] == ["relu"]


@pytest.mark.parametrize("name", sorted(models.names()))
def test_every_architecture_adds_up(name: str) -> None:
    spec = models.get(name)
    net = spec.build(**spec.small)
    found = analyze(net, spec.small_input or spec.input_shape, name=name)
    sizes = {n: p.numel() for n, p in net.named_parameters()}
    assert sum(row.params for row in found.layers) + sum(sizes[n] for n in found.unused) == found.totals.params
    assert sum(row.macs for row in found.layers) == found.totals.macs
    assert max(row.alive_bytes for row in found.layers) == found.totals.peak_activation_bytes
    assert len({row.name for row in found.layers}) == len(found.layers)


def test_published_receptive_fields() -> None:
    """Araujo et al. 2019 print 212 for VGG-16's last pooling."""
    rows = analyze(models.get("vgg16").build(**models.get("vgg16").small), (3, 64, 64)).layers
    last = [row for row in rows if row.operator == "max_pool2d"][-1]
    assert last.field is not None
    assert last.field.size == (212, 212)


# --- what a separable convolution would save ---


def test_separable_savings_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 32, 5, padding=2))
    first, second = analyze(net, (16, 8, 8)).layers
    assert first.separable is not None and second.separable is not None
    assert first.separable.params == 9 * 16 * 32 - (9 * 16 + 16 * 32)
    assert first.separable.macs == first.separable.params * 16
    assert second.separable.params == 25 * 32 * 32 - (25 * 32 + 32 * 32)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 8, 3),
        nn.Conv2d(8, 1, 3),
        nn.Linear(8, 8),
    ],
)
def test_what_is_no_candidate(layer: nn.Module) -> None:
    [row] = analyze(layer, (8, 8, 8)).layers
    assert row.separable is None
    assert separable_candidates(layer, (8, 8, 8)) == []


def test_the_substitution_saves_what_was_promised() -> None:
    from edgewise.models._layers import SeparableConv

    dense = nn.Conv2d(8, 16, 3, 2, 1)
    [candidate] = separable_candidates(nn.Sequential(dense), (8, 9, 9))
    before, after = count_costs(dense, (8, 9, 9)), count_costs(SeparableConv(8, 16, (3, 3), (2, 2), (1, 1)), (8, 9, 9))
    assert candidate.module == "0"
    assert (candidate.params_saved, candidate.macs_saved) == (before.params - after.params, before.macs - after.macs)


def test_candidates_come_largest_first_and_a_shared_one_once() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    found = separable_candidates(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), shared, shared), (1, 6, 6))
    assert [c.module for c in found] == ["1", "0"]
    one_use = (9 * 16 - (36 + 16)) * 36
    assert (found[0].params_saved, found[0].macs_saved, found[0].macs) == (92, 2 * one_use, 2 * 9 * 16 * 36)


# --- rendering ---


def test_json_is_plain_and_keeps_the_contract() -> None:
    document = json.loads(json.dumps(to_json(analyze(small_net(), (3, 8, 8), name="small"))))
    assert (document["model"], document["input_shape"]) == ("small", [3, 8, 8])
    assert {"params", "macs", "peak_activation_bytes"} <= document["totals"].keys()
    first = document["layers"][0]
    assert (first["kernel"], first["groups"], first["receptive_field"]) == ([3, 3], 1, [3, 3])
    assert first["separable"]["params"] == 216 - (27 + 24)
    assert document["layers"][2]["kernel"] is None


def rendered(net: nn.Module, shape: tuple[int, int, int]) -> str:
    from rich.console import Console

    console = Console(width=100, file=io.StringIO(), record=True, highlight=False)
    console.print(layer_table(analyze(net, shape)))
    return console.export_text()


def test_the_table_fits_a_hundred_columns() -> None:
    deep: nn.Module = nn.Conv2d(300, 4000, 3, padding=1)
    for _ in range(25):
        deep = nn.Sequential(deep)
    text = rendered(deep, (300, 33, 33))
    assert max(map(len, text.splitlines())) <= 100
    assert "300×33×33" in text and "→ 4000×33×33" in text and "conv2d 3×3 p1" in text
    assert re.search(r"^…[.0]{36} ", text, re.MULTILINE)


def test_the_table_shows_window_totals_and_what_is_unused() -> None:
    net = Lambda(lambda x, a, b: a(x), a=nn.Conv2d(4, 8, (3, 1), 2, (1, 0), 2, groups=4), b=nn.Linear(2, 2))
    text = rendered(net, (4, 9, 9))
    assert "conv2d 3×1 s2 p1×0 d2 g4" in text
    assert "38 parameters" in text and "Inference does not use 2 of the parameter tensors: parts.b.weight" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7, "7"), (999, "999"), (1500, "1.50 k"), (9999, "10.0 k"), (1.814e9, "1.81 G"), (1e8, "100 M")],
)
def test_amounts(value: float, shown: str) -> None:
    assert si_amount(value) == shown


def test_sizes() -> None:
    assert [size_of(n) for n in (12, 2048, 3 * 2**20)] == ["12 B", "2.0 KiB", "3.0 MiB"]


def test_the_picture_needs_no_network_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.html"
    path.write_text("old")
    write_picture(analyze(small_net(), (3, 8, 8), name="<small> & co"), path)
    page = path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]
    assert "&lt;small&gt; &amp; co" in page and "<small>" not in page
    assert not re.search(r"<(script|link|img)\b[^>]{0,200}\b(src|href)=", page)
    assert "plotly" in page and len(page) > 1_000_000
    for shown in ("Parameters per layer", "MACs per layer", "dense convolution", "linear layer", "peak 4.0 KiB: 1"):
        assert shown in page


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_picture(analyze(nn.ReLU(), (1, 2, 2)), tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_kinds_of_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), nn.Linear(3, 3)
    )
    assert [kind_of(row) for row in analyze(net, (2, 7, 7)).layers] == [
        "dense convolution",
        "pointwise convolution",
        "depthwise or grouped convolution",
        "other",
        "linear layer",
    ]
