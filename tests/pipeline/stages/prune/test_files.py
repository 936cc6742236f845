"""A pruned network is written at its pruned size for every target, and answers there as it does in PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgewise import models, targets
from edgewise.calib_data import Data
from edgewise.library_noise import quiet_capture
from edgewise.measure.cost.totals import count_costs
from edgewise.stage import Context
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune

QUICK = ("onnx", "xnnpack", "coreml")
BYTES = {"coreml": 2, "coreml_delegate": 2}
"""Of a weight in the file; elsewhere 4."""


class Noise:
    """Random bytes."""

    labels = torch.zeros(8, dtype=torch.int64)

    def __len__(self) -> int:
        return 8

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=draw)[index]


def cases() -> list[object]:
    return [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in targets.names()]


@pytest.mark.parametrize("name", cases())
def test_a_file_has_the_size_that_is_left(name: str, tmp_path: Path) -> None:
    try:
        target = targets.get(name)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    spec, part = models.get("tiny_resnet"), Noise()
    data = Data(name="noise", train=part, calib=part, test=part, classes=("a", "b"), shape=(1, 8, 8), digest="0")
    ctx = Context(spec=spec, data=data, scratch=tmp_path)
    torch.manual_seed(0)
    whole = spec.build(width=32).eval()
    pruned = Fold()(Prune(channels=0.5, scope="layer")(whole, ctx), ctx).eval()
    image = torch.randn(1, 1, 8, 8)
    with quiet_capture():
        program = torch.export.export(pruned, (image,))
    try:
        artifact = target.export(program, tmp_path / f"pruned{target.suffix}", targets.USUAL)
    except targets.TargetError as refused:
        pytest.skip(f"{name} takes no float network: {refused}")
    parts = [artifact.path] if artifact.path.is_file() else [p for p in artifact.path.rglob("*") if p.is_file()]
    size, each = sum(p.stat().st_size for p in parts), BYTES.get(name, 4)
    left, before = (each * count_costs(net, (1, 8, 8)).params for net in (pruned, whole))
    assert left < 0.3 * before
    assert left <= size < left + 0.15 * before
    if target.load is None:
        return
    with torch.no_grad():
        assert torch.allclose(target.load(artifact.path, 1)(image), pruned(image), atol=1e-2)
