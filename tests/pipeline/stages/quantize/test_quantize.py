"""Quantize: a graph trained on one grid, and rebuilt at batch 1 for a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.errors import RequestError, StageError
from edgewise.models import Spec
from edgewise.network import checkpoint, surgery
from edgewise.network.architecture import Base
from edgewise.network.captured import Prepare, convert
from edgewise.network.checkpoint import Checkpoint
from edgewise.stage import Context
from edgewise.stages.quantize import Quantize, _count_correct
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.targets import COMMON_OPERATORS, PRODUCTS, Grid, TargetError

SOURCE = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
"""
HOW = Quantize(
    training=Training(epochs=2, lr=0.01, batch_size=16, augment=Augment(crop=0), precision="32-true"), calibrate=32
)


def context(tmp_path: Path, grid: Grid | None) -> Context:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    images = torch.randint(0, 100, (32, 1, 8, 8), generator=draw) + 120 * labels[:, None, None, None]
    part = MemoryPart(images.to(torch.uint8), labels)
    spec = Spec(name="net", build=nn.Identity, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,), classifier="5")
    data = in_memory("bright", part, part, part, ("dark", "bright"))
    return Context(spec=spec, data=data, scratch=tmp_path, grid=grid)


def built(tmp_path: Path) -> Checkpoint:
    (tmp_path / "net.py").write_text(SOURCE)
    from edgewise.network.architecture import build

    base = Base(f"{tmp_path}/net.py:net", 2, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Checkpoint(base, build(base).eval())


def test_trained_frozen_stored_and_rebuilt_at_batch_1(tmp_path: Path) -> None:
    before = built(tmp_path)
    weights = {k: v.clone() for k, v in before.model.state_dict().items()}
    trained = HOW(before.model, context(tmp_path, Grid(weight_bits=7)))
    assert all(torch.equal(weights[k], v) for k, v in before.model.state_dict().items())
    assert surgery.history(before.model) == () and isinstance(surgery.history(trained)[-1], Prepare)
    quantizers = [m for m in trained.modules() if isinstance(m, FakeQuantizeBase)]
    assert len(quantizers) >= 6 and all(int(q.observer_enabled[0]) == 0 for q in quantizers)
    floors = {round(float(q.activation_post_process.eps) * 2**14) for q in quantizers}
    assert floors == {1, 4}  # training ends with the smallest scales that the grid began with
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    images = 3 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = trained(images)
    frozen = {k: v for k, v in trained.state_dict().items() if k.endswith(("min_val", "max_val"))}
    assert frozen and all(torch.equal(state[k], v) for k, v in frozen.items())

    checkpoint.save(Checkpoint(before.base, trained), tmp_path / "kept")
    again = checkpoint.load(tmp_path / "kept").model
    with torch.no_grad():
        assert torch.equal(again(images), wanted)
    single = convert(checkpoint.load(tmp_path / "kept", batch=1).model)
    with torch.no_grad():
        found = torch.cat([single(image[None]) for image in images])
    step = max(float(q.scale.max()) for q in quantizers if q.scale.numel() == 1)
    assert float((found - wanted).abs().max()) <= step * 1.001
    assert float(found.std()) > 0

    stored = [t for t in single.state_dict().values() if t.dtype == torch.int8]
    assert len(stored) == 3 and {int(t.abs().max()) for t in stored} == {63}


def test_ranges_are_observed_first_then_frozen(tmp_path: Path) -> None:
    model = HOW(built(tmp_path).model, context(tmp_path, Grid()))
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuantizeBase)]
    for quantizer in quantizers:
        quantizer.enable_observer()
    HOW._before_epoch(model, 0)
    assert all(int(q.observer_enabled[0]) == 1 for q in quantizers)
    HOW._before_epoch(model, 1)
    assert all(int(q.observer_enabled[0]) == 0 for q in quantizers)


class Shaded(nn.Module):
    """Multiplies by a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shade", torch.linspace(0.5, 2, 4).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.shade


def test_a_constant_that_is_quantized_stays_what_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Shaded(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    trained = HOW(model, context(tmp_path, Grid(operators=COMMON_OPERATORS | PRODUCTS)))
    (constant,) = [node for node in trained.graph.nodes if node.op == "get_attr" and "shade" in str(node.target)]
    assert any(user.op == "call_module" for user in constant.users), "the test proves nothing"
    assert torch.allclose(trained.get_buffer(str(constant.target)), model[1].shade, rtol=2**-11)
    assert not torch.equal(trained.get_parameter("0.weight"), model[0].weight)


def test_a_batch_norm_left_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    with pytest.raises(TargetError, match="Fold the model first"):
        HOW(model, context(tmp_path, Grid()))


def test_no_grid_in_common_is_told(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="none in common"):
        HOW(built(tmp_path).model, context(tmp_path, None))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(RequestError, match="observe"):
        replace(HOW, observe=1.5)
    with pytest.raises(RequestError, match="calibrate"):
        replace(HOW, calibrate=0)


@pytest.mark.parametrize("learn_ranges", [False, True])
def test_averaged_weights_are_quantized_on_their_own_grid(tmp_path: Path, learn_ranges: bool) -> None:
    assert HOW.training is not None
    before, ctx = built(tmp_path), context(tmp_path, Grid(weight_bits=7))
    how = replace(HOW, learn_ranges=learn_ranges)
    last = how(before.model, replace(ctx, scratch=tmp_path / "last"))
    mean = replace(how, training=replace(HOW.training, ema=0.5))(before.model, replace(ctx, scratch=tmp_path / "mean"))
    weights = [{k: v for k, v in net.state_dict().items() if k.endswith("weight")} for net in (last, mean)]
    assert len(weights[0]) == 3 and not any(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    for node in mean.graph.nodes:
        if node.op == "call_module" and str(node.all_input_nodes[0].target).endswith("weight"):
            weight = mean.get_parameter(node.all_input_nodes[0].target)
            quantizer = mean.get_submodule(node.target)
            largest = weight.abs().flatten(1).amax(1)
            assert torch.allclose(quantizer.scale * 63, largest, rtol=2e-3)
    images = (ctx.data.test.batch(torch.arange(32)).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        file, network = convert(mean)(images), mean(images)
    assert (file - network).abs().max() < 1e-4 * network.abs().max()


@pytest.mark.parametrize(
    ("right", "trained"), [((30, 30), False), ((30, 31), False), ((30, 29), False), ((30, 28), True)]
)
def test_training_is_left_out_where_calibration_alone_is_enough(
    right: tuple[int, int], trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 calibration images, of which the float network has 30 right; a budget of 0.05 lets one and a half go."""
    counts = iter(right)
    monkeypatch.setattr("edgewise.stages.quantize._count_correct", lambda network, ctx: next(counts))
    facts: dict[str, Any] = {}
    ctx = replace(context(tmp_path, Grid(weight_bits=7)), fact=facts.__setitem__)
    before = built(tmp_path).model
    made = replace(HOW, when_needed=True, budget=0.05)(before, ctx).state_dict()
    assert facts["training_needed"] == {
        "n": 32,
        "lost": (right[0] - right[1]) / 32,
        "allowed": 0.05,
        "trained": trained,
    }
    alone = replace(HOW, training=None, budget=0.05)(before, replace(ctx, scratch=tmp_path / "alone")).state_dict()
    assert all(torch.equal(made[name], alone[name]) for name in alone) is not trained


def test_a_calibrated_network_that_the_run_has_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.stages.quantize._count_correct", lambda network, ctx: 30)
    ctx = context(tmp_path, Grid(weight_bits=7))
    how, before = replace(HOW, when_needed=True), built(tmp_path).model
    alone = how.untrained()(before, replace(ctx, scratch=tmp_path / "alone"))
    monkeypatch.setattr(Quantize, "_prepare", lambda *_: pytest.fail("it is calibrated again"))
    assert how(before, replace(ctx, kept={how.untrained(): alone}.get)) is alone


def test_right_answers_are_counted_over_all_calibration_images(tmp_path: Path) -> None:
    ctx = context(tmp_path, None)
    always = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(always[1].weight)
    always[1].bias.data = torch.tensor([0.0, 1.0])
    assert _count_correct(always, ctx) == 16
