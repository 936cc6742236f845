"""Removing blocks: which can go, which do, and that what is left is the same network without them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.models import Spec
from edgewise.models._layers import PassOn
from edgewise.models.resnet import CifarResNet
from edgewise.models.tiny import TinyResNet
from edgewise.network import architecture, checkpoint, surgery
from edgewise.network.architecture import Base
from edgewise.network.checkpoint import Checkpoint
from edgewise.stage import Context
from edgewise.stages.fitting.timer import Reading
from edgewise.stages.prune import Prune
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.remove_blocks import choose as choosing
from edgewise.stages.remove_blocks.find import Block, find_blocks
from edgewise.stages.remove_blocks.plan import Plan, Removed, without_blocks
from edgewise.stages.remove_blocks.refit import points_of


class Images:
    """Smooth random bytes, one class."""

    def __init__(self, size: int, seed: int) -> None:
        coarse = torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        self._images = (nn.functional.interpolate(coarse, (8, 8), mode="bilinear") * 255).to(torch.uint8)
        self.labels = torch.zeros(size, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path, classifier: str = "linear") -> Context:
    train, calib = Images(64, 0), Images(40, 1)
    data = Data(name="smooth", train=train, calib=calib, test=calib, classes=("a",), shape=(3, 8, 8), digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 8, 8), mean=(0.5,), std=(0.25,), classifier=classifier)
    return Context(spec=spec, data=data, scratch=folder)


def names(model: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> list[tuple[str, ...]]:
    return [block.modules for block in find_blocks(model, torch.randn(2, *shape))]


def resnet(depth: int = 20) -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(depth, 4, 3, 8).eval()


# Which can go


def test_residual_blocks_can_go_where_the_shortcut_is_the_input_itself() -> None:
    kept = {"layer2.0", "layer3.0"}
    assert [name for (name,) in names(resnet())] == [
        name for stage in (1, 2, 3) for name in (f"layer{stage}.{n}" for n in range(3)) if name not in kept
    ]


def test_runs_of_a_sequence_can_go_where_the_shape_stays() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 24), nn.ReLU6(), nn.Linear(24, 2),
    )  # fmt: skip
    assert names(net) == [("2", "3", "4"), ("9", "10")], "not the first, not the strided one, not the last"


class Wrapped(nn.Module):
    """The residual wrapper of many transformers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Flagged(nn.Module):
    """A block that is called with more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, rate: float, *, gate: bool) -> Tensor:
        out = self.conv(x) * rate
        out += x
        return out if gate else x


class Calls(nn.Module):
    """Calls one block with flags, one twice, one whose input is scaled before it is added, one that mixes shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.flagged, self.twice, self.scaled = Flagged(), Wrapped(nn.Conv2d(3, 3, 1)), Scaled()
        self.nested = nn.Sequential(Wrapped(nn.Conv2d(3, 3, 1)), Wrapped(nn.Conv2d(3, 3, 3, padding=1)))
        self.nothing = Wrapped(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.flagged(x, 0.5, gate=True)
        x = self.scaled(self.twice(self.twice(x)))
        return self.nothing(self.nested(x)).mean((2, 3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.conv(x)


def test_what_shares_scales_or_computes_nothing_stays() -> None:
    assert names(Calls()) == [("flagged",), ("nested.0",), ("nested.1",)]


class Tokens(nn.Module):
    """Torch's own encoder, which asks its first layer how it attends."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.patch, self.encoder = nn.Conv2d(3, 8, 2, 2), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1)


def test_what_the_network_looks_into_stays() -> None:
    assert names(Tokens()) == [("encoder.layers.1",), ("encoder.layers.2",)]


def test_transformer_blocks_and_inverted_residuals_can_go() -> None:
    found = {}
    for name in ("vit_b_16", "mobilenet_v2", "mobilevit_s", "convnext_tiny", "resnet50"):
        spec = models.get(name)
        shape = spec.small_input or spec.input_shape
        found[name] = {block for (block, *_) in names(spec.build(**(spec.small or {})), shape)}
    assert {f"encoder.layers.encoder_layer_{n}" for n in range(2)} <= found["vit_b_16"]
    assert {"features.3", "features.5", "features.6"} <= found["mobilenet_v2"]
    assert "stages.3.1.transformer.2" in found["mobilevit_s"]
    assert {"features.5.0", "features.5.1"} <= found["convnext_tiny"]
    assert {"layer1.1", "layer1.2", "layer3.5"} <= found["resnet50"] and "layer1.0" not in found["resnet50"]


def test_what_is_taken_out_passes_on_what_it_is_given() -> None:
    net, images = Calls().eval(), torch.randn(2, 3, 8, 8)
    block = find_blocks(net, images)[0]
    left = without_blocks(net, [block])
    wanted = net.nothing(net.nested(net.scaled(net.twice(net.twice(images))))).mean((2, 3))
    assert torch.equal(left(images), wanted)
    assert isinstance(left.flagged, PassOn) and isinstance(net.flagged, Flagged)


# Which do


def block(name: str, shape: tuple[int, ...] = (1, 4)) -> Block:
    return Block(name=name, modules=(name,), shape=shape, kind="k", residual=True)


class Told(choosing._Losses):
    """Losses that are told: a table by the names that are gone."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.losses, self.asked = losses, list[str]()

    def read(self, gone: Sequence[Block]) -> float:
        key = "".join(sorted(b.name for b in gone))
        self.asked.append(key)
        return self.losses[key]


def test_blocks_go_by_what_they_lose_for_what_they_save() -> None:
    """c loses 3 and saves 6, b 2 for 2, a 1.5 for 1: c goes first; then b costs 4 and a 0.1, and a goes before b."""
    told = Told({"": 0, "a": 1.5, "b": 2, "c": 3, "ac": 3.1, "bc": 7, "abc": 9})
    order = list(told.order([block("a"), block("b"), block("c")], {"a": 1, "b": 2, "c": 6}))
    assert [removed.block.name for removed in order] == ["c", "a", "b"]
    assert [removed.rise for removed in order] == pytest.approx([3, 0.1, 5.9])


def test_what_cannot_be_next_is_not_read_again() -> None:
    """After a is gone, b is still cheaper than c was: c waits."""
    told = Told({"": 0, "a": 1, "b": 2, "c": 9, "ab": 3.5, "ac": 12, "abc": 20})
    list(told.order([block("a"), block("b"), block("c")], {"a": 1, "b": 1, "c": 1}))
    assert "ac" not in told.asked and "ab" in told.asked


class Watch:
    """A clock that tells the share of blocks of ``CifarResNet(20)`` that are left, the stem and the rest being free."""

    def __init__(self, cost: dict[str, float]) -> None:
        self.cost, self.reads = cost, 0

    def read(self, model: nn.Module) -> Reading:
        self.reads += 1
        gone = sum(c for n, c in self.cost.items() if isinstance(model.get_submodule(n), PassOn))
        return Reading(time=1 - gone, reference_ms=4.0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    from contextlib import nullcontext

    blocks = [f"layer{stage}.{n}" for stage in (1, 2, 3) for n in range(3)]
    found = Watch(
        {name: 0.2 if name.startswith("layer1") else 0.05 for name in blocks if name not in ("layer2.0", "layer3.0")}
    )
    monkeypatch.setattr(choosing, "open_clock", lambda model, ctx: nullcontext(found))
    return found


def test_a_time_budget_is_met_and_told(tmp_path: Path, watch: Watch) -> None:
    facts: dict[str, Any] = {}
    ctx = replace(context(tmp_path), fact=facts.__setitem__)
    left = RemoveBlocks(latency=0.55)(resnet(), ctx)
    told = facts["removed_blocks"]
    assert told["measured"] <= 0.55 * 1.01 and told["wanted"] == 0.55 and told["whole_ms"] == 4.0
    gone = [row["block"] for row in told["blocks"] if row["removed"] is not None]
    assert 1 - sum(watch.cost[name] for name in gone) == pytest.approx(told["measured"])
    assert [n for n, m in left.named_modules() if isinstance(m, PassOn)] == sorted(gone)
    saves = {row["block"]: row["saves"] for row in told["blocks"]}
    assert saves["layer1.1"] == pytest.approx(0.2) and saves["layer3.2"] == pytest.approx(0.05)


def test_milliseconds_are_a_share_of_what_was_measured(tmp_path: Path, watch: Watch) -> None:
    facts: dict[str, Any] = {}
    RemoveBlocks(milliseconds=3.0)(resnet(), replace(context(tmp_path), fact=facts.__setitem__))
    assert facts["removed_blocks"]["wanted"] == pytest.approx(0.75)
    with pytest.raises(StageError, match="takes 4 ms already"):
        RemoveBlocks(milliseconds=4.0)(resnet(), context(tmp_path))


def test_a_budget_that_cannot_be_met_is_refused_with_what_is_left(tmp_path: Path, watch: Watch) -> None:
    with pytest.raises(StageError, match=r"wanted 10\.0% of 4 ms; without all 7 blocks that can go 20\.0% are left"):
        RemoveBlocks(latency=0.1)(resnet(), context(tmp_path))
    with pytest.raises(StageError, match="wanted 8 blocks to go; 7 can"):
        RemoveBlocks(count=8)(resnet(), context(tmp_path))


def test_so_many_blocks_go(tmp_path: Path, watch: Watch) -> None:
    left = RemoveBlocks(count=3, keep=("layer1.0",))(resnet(), context(tmp_path))
    gone = [n for n, m in left.named_modules() if isinstance(m, PassOn)]
    assert len(gone) == 3 and "layer1.0" not in gone


def test_reading_the_losses_leaves_the_batch_norms_alone(tmp_path: Path) -> None:
    model = resnet(8)
    before = copy.deepcopy(model.state_dict())
    losses = choosing._Losses(model, [torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8)])
    assert losses.read([]) == pytest.approx(0, abs=1e-6)
    assert losses.read(find_blocks(model, torch.randn(2, 3, 8, 8))) > 1e-4
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# What is left


def test_named_blocks_go_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    model, images = resnet(), torch.randn(4, 3, 8, 8)
    left = RemoveBlocks(blocks=("layer1.1", "layer3.2"), reestimate=0)(model, context(tmp_path))
    expected = copy.deepcopy(model)
    expected.layer1[1], expected.layer3[2] = nn.Identity(), nn.Identity()
    assert torch.equal(left(images), expected(images)) and not torch.equal(left(images), model(images))


def test_it_survives_save_and_rebuild_and_further_surgery(tmp_path: Path) -> None:
    base = Base("resnet20", 4, 3)
    model = architecture.build(base).eval()
    ctx = context(tmp_path)
    left = RemoveBlocks(blocks=("layer1.1", "layer2.2"))(model, ctx)
    left = Prune(channels=0.7, shortcuts=False)(left, ctx)
    checkpoint.save(Checkpoint(base, left), tmp_path / "saved")
    rebuilt = checkpoint.load(tmp_path / "saved").model
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(images), left.eval()(images))
    assert [type(op).__name__ for op in surgery.history(rebuilt)] == ["Replace", "Resize"]


def test_what_is_left_is_fitted_to_what_the_whole_network_answers(tmp_path: Path) -> None:
    ctx, model = context(tmp_path), resnet()
    images = torch.cat(list(_normalised(ctx)))
    blocks = ("layer1.1", "layer2.1")

    def off(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(images) - model(images)).norm())

    cut = RemoveBlocks(blocks=blocks, reestimate=0)(model, ctx)
    fitted = RemoveBlocks(blocks=blocks, reconstruct=64)(model, ctx)
    assert off(fitted) < 0.6 * off(cut)


def test_it_learns_behind_every_block_that_stays(tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    ctx = replace(context(tmp_path), fact=facts.__setitem__)
    RemoveBlocks(blocks=("layer1.1", "layer2.2"), recover_steps=80, recover_lr=1e-2, recover_batch=16)(resnet(), ctx)
    told = facts["recovery"]
    assert told["loss"][1] < 0.9 * told["loss"][0]
    assert told["points"] == ["layer1.1", "layer1.2", "layer2.2", "layer3.1", "layer3.2", "linear"]


def test_a_point_stands_behind_the_last_of_the_blocks_that_went() -> None:
    """Of a, b, c, d in a row without b and c, a answers for b and c; e, of another shape, is no continuation of d."""
    blocks = [block(name) for name in "abcd"] + [block("e", (1, 2))]
    gone = [Removed(block=blocks[n], rise=None) for n in (1, 2, 4)]
    assert points_of(Plan(blocks=blocks, removed=gone)) == ["c", "d", "e"]


# What is refused


def test_wrong_requests_are_refused_before_anything_runs(tmp_path: Path) -> None:
    for fields, message in (
        ({}, "exactly one of"),
        ({"latency": 0.5, "count": 2}, "exactly one of"),
        ({"latency": 1.0}, "between 0 and 1"),
        ({"latency": float("nan")}, "between 0 and 1"),
        ({"milliseconds": 0.0}, "above 0"),
        ({"count": 0}, "count must lie in"),
        ({"blocks": ("a",), "keep": ("a",)}, "both removes and keeps a"),
        ({"count": 1, "recover_steps": -1}, "recover_steps must lie in"),
    ):
        with pytest.raises(RequestError, match=message):
            RemoveBlocks(**fields)
    with pytest.raises(RequestError, match=r"names layer2\.0, which cannot be removed from net; choices: layer1\.0, "):
        RemoveBlocks(blocks=("layer2.0",))(resnet(), context(tmp_path))
    with pytest.raises(RequestError, match="names nowhere"):
        RemoveBlocks(count=1, keep=("nowhere",))(resnet(), context(tmp_path))


def test_a_network_without_blocks_is_told_so(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    with pytest.raises(StageError, match="no block of net can be removed: none has a shortcut"):
        RemoveBlocks(count=1)(net, context(tmp_path, ""))
    with pytest.raises(StageError, match="keep names all"):
        RemoveBlocks(count=1, keep=("stages.0",))(TinyResNet(2, 3, 8).eval(), context(tmp_path))


def _normalised(ctx: Context) -> list[Tensor]:
    return [(ctx.data.calib.batch(torch.arange(40)).float() / 255 - 0.5) / 0.25]
