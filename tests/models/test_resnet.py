"""CIFAR ResNets: the published checkpoints load as they are, and the layout is the paper's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise import models
from edgewise.models._layers import PadShortcut

WEIGHTS = Path(os.environ.get("EDGEWISE_WEIGHTS", Path(models.__file__).parents[2] / "shared" / "data" / "weights"))


@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")])
def test_published_checkpoint(name: str, file: str) -> None:
    """Strict loading, once the prefix of data-parallel training is taken off; the features are then far from random."""
    if not (WEIGHTS / file).is_file():
        pytest.skip(f"{file} is not in {WEIGHTS}; EDGEWISE_WEIGHTS names the folder of the published checkpoints")
    saved = torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)["state_dict"]
    model = models.get(name).build()
    model.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()}, strict=True)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(images)
    assert logits.isfinite().all()
    assert logits.softmax(1).max() > 0.5


@pytest.mark.parametrize("name", ["resnet20", "resnet110"])
def test_two_shortcuts_without_parameters(name: str) -> None:
    with torch.device("meta"):
        model = models.get(name).build()
    shortcuts = [module for module in model.modules() if isinstance(module, PadShortcut)]
    assert [(s.in_channels, len(s.source), s.stride) for s in shortcuts] == [(16, 32, 2), (32, 64, 2)]
    assert not [key for key in model.state_dict() if "shortcut" in key]
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int(name.removeprefix("resnet"))


def test_depth_must_be_six_n_plus_two() -> None:
    from edgewise.models.resnet import CifarResNet

    with pytest.raises(ValueError, match=r"6n \+ 2 .* found 21"):
        CifarResNet(21, 10, 3, 16)


def test_cifar_block_by_hand() -> None:
    """With the convolutions at zero a block is the ReLU of its shortcut."""
    from edgewise.models.resnet import CifarBlock

    block = CifarBlock(2, 4, 2).eval()
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 2, 4, 4)
    wanted = torch.zeros(1, 4, 2, 2)
    wanted[:, 1:3] = x[:, :, ::2, ::2].relu()
    assert block(x).equal(wanted)
