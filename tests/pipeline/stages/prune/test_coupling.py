"""Which channels go together: one tiny network for every kind of coupling, with the expectation worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgewise.models._attention import Attention
from edgewise.models._layers import PadShortcut, SeparableConv
from edgewise.stages.prune.blocks import trace_groups
from edgewise.stages.prune.channels import channel_view
from edgewise.stages.prune.coupling import Group, cut_channels, silence_channels


def groups_of(model: nn.Module, *shape: int, classifier: str = "head", keep: tuple[str, ...] = ()) -> dict[str, Group]:
    found = trace_groups(model.eval(), torch.randn(1, *shape), classifier=classifier, keep=keep)
    return {group.name: group for group in found.groups}


def table(group: Group) -> dict[tuple[str, str], list[list[int]]]:
    """(layer, side) -> channels of each block."""
    return {(member.name, member.side): member.channels.tolist() for member in group.members}


def one_each(count: int, start: int = 0) -> list[list[int]]:
    return [[channel] for channel in range(start, start + count)]


def computes_the_same(model: nn.Module, group: Group, blocks: list[int], *shape: int) -> bool:
    """Whether cutting the blocks out gives the function that the network has when their readers ignore them."""
    ignoring, smaller = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    silence_channels(ignoring, [group], [blocks])
    cut_channels(smaller, [group], [blocks])
    images = torch.randn(3, *shape)
    with torch.no_grad():
        whole, expected, found = model(images), ignoring(images), smaller(images)
    assert not torch.allclose(whole, expected, atol=1e-4), "the removed channels had no say: the test proves nothing"
    return torch.allclose(expected, found, atol=1e-5)


class Shortcut(nn.Module):
    """x -> a -> (b(a) + a) -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.a(x)).relu()
        return self.head((self.b(self.inner(x).relu()) + x).mean((2, 3)))


def test_a_shortcut_ties_all_that_is_added() -> None:
    model = Shortcut()
    groups = groups_of(model, 2, 5, 5)
    assert len(groups) == 2
    residual = next(group for group in groups.values() if group.width == 4)
    expected = {("a", "out"), ("bn", "out"), ("inner", "in"), ("b", "out"), ("head", "in")}
    assert table(residual) == dict.fromkeys(expected, one_each(4))
    inside = next(group for group in groups.values() if group.width == 3)
    assert table(inside) == dict.fromkeys([("inner", "out"), ("b", "in")], one_each(3))
    assert all(computes_the_same(model, group, [0, 2], 2, 5, 5) for group in groups.values())


class Padded(nn.Module):
    """a (2 channels) -> b (4 channels) + option-A shortcut of a -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.shortcut = PadShortcut(2, 4, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head((self.b(x) + self.shortcut(x)).mean((2, 3)))


def test_a_padded_shortcut_is_pruned_on_either_side_alone() -> None:
    model = Padded()
    groups = groups_of(model, 1, 6, 6)
    narrow = next(group for group in groups.values() if group.width == 2)
    wide = next(group for group in groups.values() if group.width == 4)
    assert table(narrow) == dict.fromkeys([("a", "out"), ("b", "in"), ("shortcut", "in")], one_each(2))
    assert table(wide) == dict.fromkeys([("b", "out"), ("shortcut", "out"), ("head", "in")], one_each(4))
    assert computes_the_same(model, narrow, [0], 1, 6, 6)
    assert computes_the_same(model, wide, [1, 3], 1, 6, 6)


def test_a_padded_shortcut_keeps_its_map_through_both_cuts() -> None:
    model = Padded()
    groups = list(groups_of(model, 1, 6, 6).values())
    # The published map is zeros, channel 0, channel 1, zeros. Channel 0 goes, and with it the output 3.
    cut_channels(model, groups, [[0] if group.width == 2 else [3] for group in groups])
    assert (model.shortcut.in_channels, model.shortcut.source) == (1, (-1, -1, 0))


class Concatenated(nn.Module):
    """a (2 channels) and b (3 channels) side by side -> batch norm -> c."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)
        self.bn, self.head = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(torch.cat([self.a(x), self.b(x)], 1)).relu()).mean((2, 3))


def test_a_concatenation_shifts_the_second_part() -> None:
    model = Concatenated()
    groups = groups_of(model, 1, 4, 4)
    second = {("bn", "out"): one_each(3, start=2), ("head", "in"): one_each(3, start=2)}
    assert table(groups["a"]) == dict.fromkeys([("a", "out"), ("bn", "out"), ("head", "in")], one_each(2))
    assert table(groups["b"]) == {("b", "out"): one_each(3)} | second
    assert computes_the_same(model, groups["b"], [0, 2], 1, 4, 4)


def test_both_parts_of_a_concatenation_are_cut_in_one_pass() -> None:
    model = Concatenated()
    nn.init.uniform_(model.bn.weight)
    scale = model.bn.weight.detach().clone()
    groups = groups_of(model, 1, 4, 4)
    cut_channels(model, [groups["a"], groups["b"]], [[1], [0]])
    assert model.head.in_channels == model.bn.num_features == 3
    assert torch.equal(model.bn.weight.detach(), scale[[0, 3, 4]])


def depthwise(multiplier: int) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), SeparableConv(4, 3, (3, 3), padding=(1, 1), multiplier=multiplier))
    return model.append(nn.Flatten()).append(nn.Linear(3 * 4 * 4, 2))


def test_a_depthwise_convolution_follows_what_it_filters() -> None:
    model = depthwise(1)
    group = groups_of(model, 1, 4, 4, classifier="3")["0"]
    assert table(group) == dict.fromkeys([("0", "out"), ("1.depthwise", "out"), ("1.pointwise", "in")], one_each(4))
    assert computes_the_same(model, group, [1, 2], 1, 4, 4)
    cut_channels(model, [group], [[1, 2]])
    layer = model[1].depthwise
    assert (layer.groups, layer.in_channels, layer.out_channels, layer.weight.shape[0]) == (2, 2, 2, 2)


def test_a_depthwise_convolution_with_a_multiplier_loses_all_filters_of_a_channel() -> None:
    model = depthwise(2)
    groups = groups_of(model, 1, 4, 4, classifier="3")
    group = next(group for group in groups.values() if ("0", "out") in table(group))
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert table(group)["0", "out"] == table(group)["1.depthwise", "in"] == one_each(4)
    assert table(group)["1.depthwise", "out"] == table(group)["1.pointwise", "in"] == pairs
    assert computes_the_same(model, group, [0, 3], 1, 4, 4)
    cut_channels(model, [group], [[0, 3]])
    layer = model[1].depthwise
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 2, 4)


def test_a_linear_layer_after_flatten_loses_every_pixel_of_a_channel() -> None:
    model = depthwise(1)
    group = groups_of(model, 1, 4, 4, classifier="3")["1.pointwise"]
    pixels = [list(range(16 * channel, 16 * channel + 16)) for channel in range(3)]
    assert table(group) == {("1.pointwise", "out"): one_each(3), ("3", "in"): pixels}
    assert computes_the_same(model, group, [1], 1, 4, 4)


class Grouped(nn.Module):
    """a (8 channels) -> convolution in 2 groups (8 to 12 channels) -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.a(x)).relu()).mean((2, 3))


def test_a_grouped_convolution_loses_the_same_place_in_every_group() -> None:
    model = Grouped()
    groups = groups_of(model, 1, 4, 4)
    entering, leaving = [[0, 4], [1, 5], [2, 6], [3, 7]], [[k, k + 6] for k in range(6)]
    assert table(groups["a"]) == dict.fromkeys([("a", "out"), ("grouped", "in")], entering)
    assert table(groups["grouped"]) == dict.fromkeys([("grouped", "out"), ("head", "in")], leaving)
    assert computes_the_same(model, groups["a"], [1, 3], 1, 4, 4)
    assert computes_the_same(model, groups["grouped"], [0, 5], 1, 4, 4)


class Transformer(nn.Module):
    """Tokens (the pixels) through one attention of two heads of three channels, then the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.attn = nn.Linear(4, 6), nn.LayerNorm(6), Attention(6, heads=2)
        self.position = nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2)) + self.position
        return self.head((x + self.attn(self.norm(x))).mean(1))


def test_attention_loses_whole_heads() -> None:
    model = Transformer()
    groups = groups_of(model, 4, 2, 2)
    assert [group.attention for group in groups.values()] == [None, "attn"]
    _, group = groups.values()
    heads = [[0, 1, 2], [3, 4, 5]]
    assert table(group) == {
        ("attn.proj", "in"): heads,
        ("attn.qkv", "out"): [[*h, *(c + 6 for c in h), *(c + 12 for c in h)] for h in heads],
    }
    assert computes_the_same(model, group, [0], 4, 2, 2)
    cut_channels(model, [group], [[0]])
    assert (model.attn.num_heads, model.attn.qkv.out_features, model.attn.proj.in_features) == (1, 9, 3)


def test_what_has_several_values_for_each_channel_is_left_alone_with_the_reason() -> None:
    found = trace_groups(Tangled().eval(), torch.randn(1, 3, 4, 4), classifier="head")
    assert found.left_alone["a"] == "its channels meet a free parameter (pairs)"
    assert "network's outputs" in found.left_alone["head"]
    assert [group.name for group in found.groups] == ["b"]


class Tangled(nn.Module):
    """Channels times pairs of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)
        self.pairs = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.pairs.repeat(2)[:, None, None]
        return self.head(self.b(x).mean((2, 3)))


def test_a_kept_layer_keeps_all_it_is_added_to() -> None:
    assert {group.width for group in groups_of(Shortcut(), 2, 5, 5, keep=("b",)).values()} == {3}


def test_shortcuts_can_be_left_alone() -> None:
    model = Shortcut().eval()
    found = trace_groups(model, torch.randn(1, 2, 5, 5), classifier="head", shortcuts=False)
    added = [name for name, reason in found.left_alone.items() if "added" in reason]
    whole = trace_groups(model, torch.randn(1, 2, 5, 5), classifier="head")
    assert added == ["a", "b"] and len(whole.groups) == len(found.groups) + 1
    (gone,) = [group for group in whole.groups if group.name not in {g.name for g in found.groups}]
    assert len([m for m in gone.members if m.side == "out" and isinstance(m.module, nn.Conv2d)]) > 1


class Gate(nn.Module):
    """What ``a`` makes, multiplied by what ``b`` makes: no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) * self.b(x)).mean((2, 3))


def test_a_gate_is_no_shortcut() -> None:
    found = trace_groups(Gate().eval(), torch.randn(1, 1, 4, 4), classifier="head", shortcuts=False)
    assert [group.name for group in found.groups] == ["a"]


def test_outputs_stay_whatever_the_last_layer_is_called() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1))
    assert list(groups_of(model, 1, 4, 4, classifier="nothing")) == ["0"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_a_row_of_the_view_is_exactly_what_one_channel_touches(layer: nn.Module) -> None:
    image = torch.randn(2, 4, 5, 5) if not isinstance(layer, nn.Linear) else torch.randn(2, 4)
    with torch.no_grad():
        for side, channel in (("in", 3), ("out", 4)):
            changed = copy.deepcopy(layer)
            places = torch.arange(layer.weight.numel()).view(layer.weight.shape)
            row = channel_view(layer, side, places)[channel]
            changed.weight.view(-1)[row] = 0
            if side == "in":
                image_without = image.clone()
                image_without[:, channel] = 0
                assert torch.allclose(changed(image), layer(image_without), atol=1e-6)
            else:
                difference = (changed(image) - layer(image)).abs().transpose(0, 1).flatten(1).sum(1)
                assert difference.nonzero().flatten().tolist() == [channel]
