"""What networks do with channels between two convolutions: cut rightly, or left alone with the reason; wrong cuts are seen.

Every network is stem (16 channels, batch norm) -> the kind -> c (32 channels) -> fc. What can go of the stem and of the
layers of the kind is worked out by hand.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import StageError
from edgewise.stage import Context
from edgewise.stages.fitting.reconstruct import layers_left_alone
from edgewise.stages.prune import proof
from edgewise.stages.prune.checked_cut import trace_for
from edgewise.stages.prune.coupling import Group, Member
from edgewise.stages.separate.forms import Depthwise
from edgewise.stages.separate.plan import survey_layers

SHAPE = (1, 8, 8)


class Part:
    labels = torch.zeros(1, dtype=torch.int64)

    def __len__(self) -> int:
        return 1

    def batch(self, index: Tensor) -> Tensor:
        raise AssertionError("nothing is read")


def context() -> Context:
    spec = dataclasses.replace(models.get("tiny_resnet"), classifier="fc")
    part = Part()
    data = Data(name="x", train=part, calib=part, test=part, classes=("a", "b"), shape=SHAPE, digest="0")
    return Context(spec=spec, data=data, scratch=Path("unused"))


class Net(nn.Module):
    def __init__(self, kind: nn.Module, width: int) -> None:
        super().__init__()
        self.stem, self.kind = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)), kind
        self.c, self.fc = nn.Conv2d(width, 32, 3, 2, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.c(self.kind(torch.relu(self.stem(x))))).mean((2, 3)))


class Call(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def conv(i: int, o: int, k: int = 3, **fields: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **fields)


def up(i: int, o: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(i, o, 4, 2, 1, groups=groups), nn.BatchNorm2d(o))


def shuffled(x: Tensor, groups: int = 4) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class SamePadding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias, padding=1)


class Scaled(nn.Conv2d):
    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.scale = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale.view(1, -1, 1, 1)


class Block(nn.Module):
    """ConvNeXt's: the norm and the linear layers see channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm = conv(16, 16, 7, groups=16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.norm(self.dw(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


def tied() -> nn.Module:
    kind = Call(lambda s, x: s.b(torch.relu(s.a(x))), a=conv(16, 16), b=conv(16, 16))
    kind.b.weight = kind.a.weight
    return kind


def shared_layer() -> nn.Module:
    layer = conv(16, 16)
    return nn.Sequential(layer, nn.ReLU(), layer)


def eca(x: Tensor, layer: nn.Module) -> Tensor:
    return x * torch.sigmoid(layer(x.mean((2, 3))[:, None])[:, 0])[:, :, None, None]


def res2(s: Any, x: Tensor) -> Tensor:
    a, b, c, d = x.chunk(4, 1)
    return torch.cat([a, s.a(b), s.b(c + s.a(b)), d], 1)


def heads(s: Any, x: Tensor) -> Tensor:
    query, key, value = (layer(x).flatten(2).unflatten(1, (-1, 4)) for layer in (s.q, s.k, s.v))
    mixed = F.scaled_dot_product_attention(*(t.transpose(-1, -2) for t in (query, key, value)))
    return s.o(mixed.transpose(-1, -2).flatten(1, 2).unflatten(2, (8, 8)))


Kind = tuple[Callable[[], nn.Module], int, dict[str, tuple[int, int]], dict[str, str]]

STEM = {"stem.0": (16, 16)}
# Kind: its layers, its width, group -> (channels, blocks) but for c, and layer left alone -> a part of the reason.
KINDS: dict[str, Kind] = {
    "grouped": (lambda: conv(16, 32, groups=4), 32, {"stem.0": (16, 4), "kind": (32, 8)}, {}),
    "grouped to one each": (lambda: conv(16, 4, groups=4), 4, {"stem.0": (16, 4)}, {"kind": "all together"}),
    "multiplier": (lambda: conv(16, 32, groups=16), 32, STEM, {}),
    "transposed": (lambda: up(16, 24), 24, STEM | {"kind.0": (24, 24)}, {}),
    "transposed, grouped": (lambda: up(16, 24, 4), 24, {"stem.0": (16, 4), "kind.0": (24, 6)}, {}),
    "transposed, depthwise": (lambda: up(16, 16, 16), 16, STEM, {}),
    "transposed, multiplied": (lambda: up(16, 32, 16), 32, STEM, {}),
    "squeeze and excite": (
        lambda: Call(lambda s, x: x * s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid(), a=conv(16, 8, 1), b=conv(8, 16, 1)),
        16, STEM | {"kind.a": (8, 8)}, {},
    ),
    "channel attention": (
        lambda: Call(lambda s, x: eca(x, s.a), a=nn.Conv1d(1, 1, 3, padding=1)),
        16, {}, {"stem.0": "mixed by kind.a", "kind.a": "single channel"},
    ),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(4, 16), conv(16, 16)), 16, {"stem.0": (16, 4), "kind.1": (16, 16)}, {}),
    "group norm of all": (lambda: nn.GroupNorm(1, 16), 16, STEM, {}),
    "group norm of each": (lambda: nn.GroupNorm(16, 16), 16, STEM, {}),
    "group norm, called": (lambda: Call(lambda s, x: F.group_norm(x, 4)), 16, {}, {"stem.0": "a norm in kind"}),
    "instance norm": (lambda: nn.InstanceNorm2d(16), 16, STEM, {}),
    "instance norm with all": (lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True), 16, STEM, {}),
    "PReLU": (lambda: nn.Sequential(conv(16, 16), nn.PReLU(16), nn.PReLU()), 16, STEM | {"kind.0": (16, 16)}, {}),
    "channels last": (Block, 16, STEM | {"kind.wide": (64, 64)}, {}),
    "pooled channels last": (
        lambda: Call(lambda s, x: x * F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1)), 16, STEM, {},
    ),
    "turned by its strides": (
        lambda: Call(lambda s, x: x.as_strided(x.shape, (x.stride(0), 64, 1, 8))), 16, {}, {"stem.0": "they pass as_strided in kind"},
    ),
    "norm over the image": (lambda: nn.LayerNorm([16, 8, 8]), 16, {}, {"stem.0": "3 dimensions at once"}),
    "norm by hand": (lambda: Call(lambda s, x: x / x.std(1, keepdim=True)), 16, {}, {"stem.0": "mixed by std in kind"}),
    # A channel of the shuffle's 4 x 4 stands at 4·place + group; of g2's groups of 4 it stands at place `group`, so that
    # g2's places tie all of g's places together.
    "shuffle": (
        lambda: nn.Sequential(conv(16, 16, groups=4), nn.ChannelShuffle(4), conv(16, 16, 1, groups=4)),
        16, {"stem.0": (16, 4), "kind.2": (16, 4)}, {"kind.0": "all together"},
    ),
    "shuffle of 4 x 8": (
        lambda: nn.Sequential(conv(16, 32, groups=4), nn.ChannelShuffle(4), conv(32, 16, 1, groups=4)),
        16, {"stem.0": (16, 4), "kind.0": (32, 2), "kind.2": (16, 4)}, {},
    ),
    "shuffle before a dense layer": (lambda: nn.ChannelShuffle(4), 16, {"stem.0": (16, 4)}, {}),
    "shuffle by views": (lambda: Call(lambda s, x: shuffled(x)), 16, {"stem.0": (16, 4)}, {}),
    "flip": (lambda: Call(lambda s, x: x.flip(1)), 16, STEM, {}),
    "roll": (lambda: Call(lambda s, x: x.roll(3, 1)), 16, {}, {"stem.0": "they pass roll in kind"}),
    "index": (lambda: Call(lambda s, x: x[:, [3, 1, 2, 0, *range(4, 16)]]), 16, {}, {"stem.0": "they pass index in kind"}),
    "every other": (lambda: Call(lambda s, x: x[:, ::2]), 8, {}, {"stem.0": "slice in kind"}),
    "pixel shuffle": (lambda: nn.Sequential(conv(16, 64), nn.PixelShuffle(2)), 16, STEM | {"kind.0": (64, 16)}, {}),
    "pixel unshuffle": (lambda: nn.PixelUnshuffle(2), 64, STEM, {}),
    "split, one part filtered": (
        lambda: Call(lambda s, x: torch.cat([s.a(x[:, :8]), x[:, 8:]], 1), a=conv(8, 8)),
        16, {"kind.a": (8, 8)}, {"stem.0": "they pass slice in kind"},
    ),
    # Four chunks: their sizes stay equal where one place of each goes; a's outputs meet c in an addition.
    "chunks": (lambda: Call(res2, a=conv(4, 4), b=conv(4, 4)), 16, {"stem.0": (16, 4), "kind.b": (4, 4)}, {}),
    "gated chunks": (
        lambda: Call(lambda s, x: torch.mul(*s.a(x).chunk(2, 1)), a=conv(16, 32)), 16, STEM | {"kind.a": (32, 16)}, {},
    ),
    "GLU": (lambda: nn.Sequential(conv(16, 32), nn.GLU(1)), 16, STEM | {"kind.0": (32, 16)}, {}),
    "maxout": (
        lambda: Call(lambda s, x: s.a(x).unflatten(1, (2, -1)).amax(1), a=conv(16, 32)), 16, STEM | {"kind.a": (32, 16)}, {},
    ),
    "maxout of a written size": (
        lambda: Call(lambda s, x: s.a(x).view(-1, 16, 2, 8, 8).amax(2), a=conv(16, 32)), 16, STEM, {"kind.a": "all together"},
    ),
    "stack": (
        lambda: Call(lambda s, x: torch.stack([s.a(x), s.b(x)], 2).flatten(1, 2), a=conv(16, 16), b=conv(16, 16)),
        32, STEM | {"kind.a": (16, 16)}, {},
    ),
    "twice beside itself": (lambda: Call(lambda s, x: torch.cat([x, -x], 1)), 32, STEM, {}),
    "repeated": (lambda: Call(lambda s, x: x.repeat(1, 2, 1, 1)), 32, STEM, {}),
    "channels of zeros": (lambda: Call(lambda s, x: F.pad(x, (0, 0, 0, 0, 4, 4))), 24, STEM, {}),
    "unfolded": (lambda: Call(lambda s, x: F.unfold(x, 3, padding=1).unflatten(2, (8, 8))), 144, STEM, {}),
    "sums along channels": (lambda: Call(lambda s, x: x.cumsum(1)), 16, {}, {"stem.0": "mixed by cumsum in kind"}),
    "softmax over channels": (lambda: Call(lambda s, x: x.softmax(1)), 16, {}, {"stem.0": "mixed by softmax in kind"}),
    "sorted": (lambda: Call(lambda s, x: x.sort(1).values), 16, {}, {"stem.0": "mixed by sort in kind"}),
    "response norm": (lambda: nn.LocalResponseNorm(3), 16, {}, {"stem.0": "mixed by avg_pool3d"}),
    "einsum": (
        lambda: Call(lambda s, x: torch.einsum("nchw,dc->ndhw", x, s.w), w=nn.Parameter(torch.randn(16, 16))),
        16, {}, {"stem.0": "free parameter (kind.w)"},
    ),
    "free scale": (
        lambda: Call(lambda s, x: x * s.w, w=nn.Parameter(torch.rand(1, 16, 1, 1))), 16, STEM, {},
    ),
    "free scale of halves": (
        lambda: Call(lambda s, x: x * s.w.repeat(1, 2, 1, 1), w=nn.Parameter(torch.rand(1, 8, 1, 1))), 16, {},
        {"stem.0": "free parameter (kind.w)"},
    ),
    "free scale turned about": (
        lambda: Call(lambda s, x: x * s.w.flip(1), w=nn.Parameter(torch.rand(1, 16, 1, 1))), 16, {},
        {"stem.0": "logits differ by"},
    ),
    "products of channels": (
        lambda: Call(lambda s, x: torch.bmm(x.flatten(2), x.flatten(2).mT).unsqueeze(1)), 1, {}, {"stem.0": "mixed by c"},
    ),
    # Two heads of four channels: query, key and value of a head go together.
    "heads": (
        lambda: Call(heads, q=conv(16, 8, 1), k=conv(16, 8, 1), v=conv(16, 8, 1), o=conv(8, 16, 1)),
        16, STEM | {"kind.q": (8, 2), "kind.o": (16, 16)}, {},
    ),
    "attention module": (
        lambda: Call(lambda s, x: s.a(*[x.flatten(2).mT] * 3)[0].mT.unflatten(2, (8, 8)), a=nn.MultiheadAttention(16, 4)),
        16, {"kind.a.out_proj": (16, 16)}, {"stem.0": "free parameter (kind.a.in_proj_weight)"},
    ),
    "a kernel from the images": (
        lambda: Call(
            lambda s, x: F.conv2d(x.reshape(1, -1, 8, 8), s.a(x.mean((2, 3))).reshape(-1, 1, 3, 3), padding=1, groups=16 * len(x))
            .reshape(x.shape),
            a=nn.Linear(16, 144),
        ),
        16, {}, {"stem.0": "a kernel that the network computes", "kind.a": "a kernel that the network computes"},
    ),
    "weights of a ramp": (
        lambda: Call(lambda s, x: x * torch.linspace(0.5, 2, x.shape[1]).to(x).view(1, -1, 1, 1)), 16, {},
        {"stem.0": "logits differ by"},
    ),
    "a written width": (lambda: Call(lambda s, x: x.view(-1, 16, 8, 8)), 16, {}, {"stem.0": "does not run"}),
    "same padding": (lambda: SamePadding(16, 16, 2), 16, STEM | {"kind": (16, 16)}, {}),
    "standardised weights": (lambda: Standardised(16, 16, 3), 16, {"kind": (16, 16)}, {"stem.0": "logits differ by"}),
    "scaled convolution": (lambda: Scaled(16, 16, 3, padding=1), 16, STEM | {"kind": (16, 16)}, {}),
    "tied weights": (
        tied, 16, {},
        {"stem.0": "kind.a shares its weights with kind.b", "kind.a": "shares its weights", "kind.b": "shares its weights"},
    ),
    "one layer twice": (shared_layer, 16, STEM, {}),
}  # fmt: skip


def network(name: str) -> nn.Module:
    make, width, _, _ = KINDS[name]
    torch.manual_seed(0)
    return Net(make(), width).eval()


def found(model: nn.Module) -> tuple[list[Group], dict[str, str]]:
    coupling = trace_for(model, (), context())
    return list(coupling.groups), coupling.left_alone


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_cut_or_left_alone_as_worked_out(name: str) -> None:
    _, _, expected, alone = KINDS[name]
    groups, left = found(network(name))
    assert {group.name: (group.width, group.blocks) for group in groups} == expected | {"c": (32, 32)}
    assert left.keys() == {*alone, "fc"}
    assert all(part in left[layer] for layer, part in alone.items())


def planted(group: Group, wrong: Member) -> Group:
    """The group with the channels of one member moved on by one block."""
    members = tuple(
        dataclasses.replace(member, channels=member.channels.roll(1, 0)) if member is wrong else member
        for member in group.members
    )
    return dataclasses.replace(group, members=members)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind[2]])
def test_a_wrong_cut_of_each_member_is_seen_and_a_right_one_passes(name: str) -> None:
    model = network(name)
    groups, _ = found(model)
    bench = proof.drawn_bench(model, torch.randn(3, *SHAPE))
    for group in groups:
        removed = proof.draw_removed([group], seed=5)
        if len(removed[0]) * 2 == group.blocks == 2:
            removed = [[0]]
        assert bench.problem([group], removed) is None, group.name
        for member in group.members:
            if member.module.state_dict():  # an instance norm without weights holds nothing that could be mixed up
                assert bench.problem([planted(group, member)], removed), (group.name, member.name, member.side)


class Checked(nn.Module):
    """Wants its features in float32, and says nothing where they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(1, 8), conv(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        assert x.dtype == torch.float32
        return self.fc(self.b(x).mean((2, 3)))


def test_a_network_that_takes_float32_alone_is_proven_in_it() -> None:
    bench = proof.drawn_bench(Checked(), torch.randn(3, *SHAPE))
    assert bench.images.dtype == torch.float32 and bench.images.shape[0] == 3


class Prepared(nn.Module):
    """Normalises its images itself, first by numbers, then by a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.bn = nn.Parameter(torch.zeros(1, 1, 1, 1)), nn.BatchNorm2d(1)
        self.a, self.b, self.fc = conv(1, 8), conv(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(self.bn((x - self.mean) / 0.5)).relu()).mean((2, 3)))


def test_images_that_meet_a_parameter_are_no_parameter() -> None:
    groups, left = found(Prepared().eval())
    assert [(group.name, group.width) for group in groups] == [("a", 8), ("b", 8)] and left.keys() == {"fc"}


def test_weights_that_are_computed_are_told() -> None:
    model = nn.Sequential(
        conv(1, 8), nn.utils.parametrizations.weight_norm(conv(8, 8)), nn.Flatten(), nn.Linear(512, 4)
    )
    with pytest.raises(StageError, match="1: its weights are computed from other parameters"):
        found(model.eval())


def test_a_network_for_one_image_is_tried_with_one() -> None:
    class One(Prepared):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(1, 1, 8, 8))

    assert [group.name for group in found(One().eval())[0]] == ["a", "b"]


def test_what_a_subclass_computes_decides_whether_it_is_fitted_and_replaced() -> None:
    class Named(nn.Conv2d):
        """Nothing but another name."""

    torch.manual_seed(0)
    model = nn.Sequential(
        Named(1, 8, 3, padding=1), SamePadding(8, 8, 2), conv(8, 8, groups=2), nn.Flatten(), nn.Linear(512, 4)
    )
    images = torch.randn(2, *SHAPE)
    reasons = layers_left_alone(model.eval(), ["0", "1", "2", "4"], images)
    assert reasons.keys() == {"1", "2"} and "grouped" in reasons["2"]
    assert reasons["1"] == "it is a SamePadding, whose forward does more than its base's"
    candidates = {candidate.name: candidate.reason for candidate in survey_layers(model, images, Depthwise(1))}
    assert candidates["0"] == "" and "SamePadding, whose forward does more than a convolution" in candidates["1"]


class BesideNorms(nn.Module):
    """What the numbers of the group norm hide: a shuffle further on, and a branch that starts at zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = conv(1, 16), norm
        self.a, self.bn, self.c, self.fc = conv(16, 16), nn.BatchNorm2d(16), conv(16, 16), nn.Linear(16, 10)
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc((x + self.bn(self.c(self.a(x).roll(3, 1)))).mean((2, 3)))


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.GroupNorm(1, 16), models._layers.LayerNorm2d(16)], ids=str)
def test_a_wrong_cut_beside_a_norm_is_seen_also_where_the_branch_gives_zeros(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = BesideNorms(copy.deepcopy(norm)).eval()
    groups, left = found(model)
    assert [group.name for group in groups] == ["stem"] and "they pass roll" in left["a"]
    # On the network as it is the branch gives zeros however it is cut.
    bench = proof.own_bench(model, torch.randn(3, *SHAPE))
    removed = proof.draw_removed(groups, seed=3)
    assert bench.problem(groups, removed) is None
    (group,) = groups
    for member in group.members:
        if member.name in ("stem", "norm", "fc"):
            assert bench.problem([planted(group, member)], removed), member.name


def test_the_reference_of_a_group_norm_averages_over_what_is_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)).eval()
    model[1].weight.data.uniform_(0.5, 2)
    images = torch.randn(2, 1, 5, 5)
    weight = model[1].weight
    tables = ((model[0], "out"), (model[1], "out"), (model[2], "in"))
    members = tuple(Member(str(k), m, side, torch.tensor([[0, 2], [1, 3]])) for k, (m, side) in enumerate(tables))
    logits = proof.logits_without(model, [Group("0", members, 4)], [[0]], images)
    x = model[0](images)[:, [1, 3]]  # one channel of each group is left, which is normed alone
    normed = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    read = model[2].weight[:, [1, 3], 0, 0]
    by_hand = torch.einsum(
        "oc,nchw->nohw", read, normed * weight[[1, 3]].view(1, 2, 1, 1) + model[1].bias[[1, 3]].view(1, 2, 1, 1)
    )
    assert torch.allclose(logits, by_hand + model[2].bias.view(1, 2, 1, 1), atol=1e-5)
