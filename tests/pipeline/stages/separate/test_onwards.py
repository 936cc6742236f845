"""Substituted networks go on: pruned before and after, rebuilt from their checkpoint, quantized, written and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import library_noise, models, targets
from edgewise.calib_data import Data
from edgewise.measure.cost.totals import count_costs
from edgewise.models._layers import SeparableConv
from edgewise.network import captured, checkpoint
from edgewise.network.architecture import Base
from edgewise.network.captured import Prepare
from edgewise.network.checkpoint import Checkpoint
from edgewise.stage import Context, Stage
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.separate import Separate
from edgewise.stages.separate.average_pool import AveragePool
from edgewise.stages.separate.pooled_head import PooledHead


class Images:
    """Random bytes."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(0, 256, (48, *shape), dtype=torch.uint8, generator=generator)
        self.labels = torch.zeros(48, dtype=torch.int64)

    def __len__(self) -> int:
        return 48

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path, name: str, shape: tuple[int, int, int]) -> Context:
    part, spec = Images(shape), models.get(name)
    data = Data(name="noise", train=part, calib=part, test=part, classes=("a",), shape=shape, digest="0")
    return Context(spec=spec, data=data, scratch=folder)


def separate(**settings: Any) -> Separate:
    return Separate(measure_time=False, max_error=10, images=16, positions=512, sweeps=1, **settings)


TINY = ("tiny_resnet", (1, 8, 8))


@pytest.mark.parametrize("form", [{}, {"rank": 2}, {"into": "spatial"}])
def test_pruned_before_and_after(form: dict[str, Any], tmp_path: Path) -> None:
    """Depthwise and pointwise halves keep to each other when channels go, shortcuts included."""
    ctx = context(tmp_path, *TINY)
    model = ctx.spec.build().eval()
    pruned = Prune(channels=0.7)(model, ctx)
    found = separate(**form)(pruned, ctx)
    again = Prune(channels=0.7, round_to=4)(found, ctx)
    assert count_costs(again, TINY[1]).macs < count_costs(found, TINY[1]).macs < count_costs(pruned, TINY[1]).macs
    for module in again.modules():
        if isinstance(module, SeparableConv):
            assert module.depthwise.groups == module.depthwise.in_channels
            assert module.depthwise.out_channels == module.pointwise.in_channels
    checkpoint.save(Checkpoint(Base("tiny_resnet", 10, 1), again), tmp_path)
    images = torch.rand(2, *TINY[1])
    assert torch.equal(checkpoint.load(tmp_path).model(images), again(images))


CASES: dict[str, tuple[str, tuple[int, int, int], Stage]] = {
    "depthwise": (*TINY, separate()),
    "spatial": (*TINY, separate(into="spatial")),
    "head": ("vgg11_bn", (3, 64, 64), PooledHead(max_error=100)),
    "pool": ("vgg11_bn", (3, 64, 64), AveragePool(max_error=100)),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "xnnpack"])
@pytest.mark.parametrize("case", CASES)
def test_quantized_files_answer_as_their_network(case: str, target: str, tmp_path: Path) -> None:
    """What was recorded as surgery rebuilds for the file's process; every new layer is an integer one in it."""
    name, shape, stage = CASES[case]
    backend = targets.get(target)
    pytest.importorskip(backend.needs[0])
    ctx = context(tmp_path, name, shape)
    built = ctx.spec.build(num_classes=10, in_channels=shape[0], **ctx.spec.small).eval()
    folded = Fold()(stage(built, ctx), ctx)
    grid = targets.common_grid([backend])
    assert grid is not None
    prepared = Prepare(grid.to_json(), shape).capture(folded)
    images = (ctx.data.calib.batch(torch.arange(4)).float() / 255 - 0.3) / 0.4
    prepared(images)
    program = _program(prepared, folded, grid, images)
    written = backend.export(program, tmp_path / f"file{backend.suffix}", targets.USUAL)
    assert backend.load is not None
    with torch.no_grad():
        wanted = captured.convert(prepared)(images)
    found = torch.cat([backend.load(written.path, 1)(image[None]) for image in images])
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    assert not [operator for operator in written.undelegated if "conv" in operator or "pool" in operator]


def _program(prepared: Any, folded: nn.Module, grid: Any, images: Tensor) -> Any:
    single = Prepare(grid.to_json(), tuple(images.shape[1:])).capture(folded, batch=1)
    single.load_state_dict(prepared.state_dict())
    with library_noise.quiet_capture():
        return torch.export.export(captured.convert(single), (images[:1],))
