"""Every architecture prunes, or says why not."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.measure.cost.totals import count_costs
from edgewise.network import surgery
from edgewise.stage import Context
from edgewise.stages.prune import Prune
from edgewise.studies.architectures.photographs import photograph_crops

DEEP = {"resnet110", "resnet152", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6"}
SLOW = DEEP | {
    "efficientnet_b7",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
}

MANY_LAYERS = {
    name
    for name in models.names()
    if name.startswith(("efficientnet", "mobilenet_v", "mobilevit", "googlenet", "squeezenet", "shufflenet", "resnet1"))
    or name in {"resnet34", "resnet44", "resnet50", "resnet56", "vgg16", "vgg19", "vgg16_bn", "vgg19_bn"}
} - {"resnet18", "mobilenet_v1"}
"""A fit of one layer after the other takes its time."""


class Blank:
    """A part that nothing is read from."""

    labels = torch.zeros(1, dtype=torch.int64)

    def __len__(self) -> int:
        return 1

    def batch(self, index: Tensor) -> Tensor:
        raise AssertionError("magnitudes need no images")


def cases(slow: set[str]) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in models.names()]


@pytest.mark.parametrize("name", cases(SLOW))
def test_it_prunes_and_is_rebuilt_or_says_why_not(name: str) -> None:
    spec = models.get(name)
    shape = spec.small_input or spec.input_shape
    classes = tuple(map(str, range(10)))
    data = Data(name="blank", train=Blank(), calib=Blank(), test=Blank(), classes=classes, shape=shape, digest="0")
    ctx = Context(spec=spec, data=data, scratch=Path("unused"))
    torch.manual_seed(0)
    model = spec.build(num_classes=10, **spec.small).eval()
    stage = Prune(channels=0.5, scope="layer", round_to=1, reestimate=0)
    if "prune" in spec.cannot:
        with pytest.raises(RequestError, match="cannot be pruned"):
            stage(model, ctx)
        return
    state = copy.deepcopy(model.state_dict())
    pruned = stage(model, ctx)
    assert count_costs(pruned, shape).macs < 0.9 * count_costs(model, shape).macs
    classifier = pruned.get_submodule(spec.classifier)
    assert isinstance(classifier, (nn.Linear, nn.Conv2d)) and len(classifier.weight) == 10
    rebuilt = surgery.apply(model, surgery.history(pruned)[-1])
    rebuilt.load_state_dict(pruned.state_dict(), strict=True)
    images = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), pruned(images))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", cases(SLOW | MANY_LAYERS))
def test_every_architecture_is_fitted_and_rebuilt(name: str) -> None:
    spec = models.get(name)
    ctx = _photographed(spec)
    torch.manual_seed(0)
    model = spec.build(num_classes=10, **spec.small).eval()
    facts: dict[str, Any] = {}
    stage = Prune(channels=0.75, scope="layer", round_to=1, reconstruct=32)
    if "prune" in spec.cannot:
        with pytest.raises(RequestError, match="cannot be pruned"):
            stage(model, ctx)
        return
    pruned = stage(model, dataclasses.replace(ctx, fact=facts.__setitem__))
    errors = facts["reconstruction"]
    assert errors and all(after <= before for before, after in errors.values())
    assert sum(after for _, after in errors.values()) < sum(before for before, _ in errors.values())
    rebuilt = surgery.apply(model, surgery.history(pruned)[-1])
    rebuilt.load_state_dict(pruned.state_dict(), strict=True)
    images = torch.randn(2, *ctx.input_shape)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), pruned(images)) and pruned(images).isfinite().all()


@pytest.mark.parametrize("name", cases(SLOW | MANY_LAYERS))
def test_every_architecture_learns_block_by_block(name: str, tmp_path: Path) -> None:
    spec = models.get(name)
    if "prune" in spec.cannot:
        pytest.skip(spec.cannot["prune"])
    torch.manual_seed(0)
    model = spec.build(num_classes=10, **spec.small).eval()
    facts: dict[str, Any] = {}
    ctx = dataclasses.replace(_photographed(spec), scratch=tmp_path, fact=facts.__setitem__)
    stage = Prune(
        channels=0.75, scope="layer", round_to=1, reestimate=32, recover_steps=4, recover_lr=1e-5, recover_batch=8
    )
    pruned = stage(model, ctx)
    before, after = facts["recovery"]["loss"]
    assert 0 < after < 1.1 * before < float("inf")
    rebuilt = surgery.apply(model, surgery.history(pruned)[-1])
    rebuilt.load_state_dict(pruned.state_dict(), strict=True)
    images = torch.randn(2, *ctx.input_shape)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), pruned(images))


def _photographed(spec: models.Spec) -> Context:
    data = photograph_crops(spec.small_input or spec.input_shape, 10, 32)
    return Context(spec=spec, data=data, scratch=Path("unused"))
