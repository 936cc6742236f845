"""Batches come as small as the memory of what they go through asks, and no smaller than statistics need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import fit_norms
from edgewise.stages.fitting.image_batches import draw_batches


class Images:
    """Grey images of a brightness of their own, one class."""

    labels = torch.zeros(48, dtype=torch.int64)

    def __len__(self) -> int:
        return 48

    def batch(self, index: Tensor) -> Tensor:
        return (4 * index).to(torch.uint8)[:, None, None, None].expand(-1, 3, 80, 80).contiguous()


def context(folder: Path) -> Context:
    images = Images()
    data = Data(name="greys", train=images, calib=images, test=images, classes=("a",), shape=(3, 80, 80), digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 80, 80), mean=(0.5,), std=(0.25,), classifier="2")
    return Context(spec=spec, data=data, scratch=folder)


def wide(channels: int) -> nn.Sequential:
    """Holds 80 × 80 × ``channels`` values of an image at a time, twice."""
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


@pytest.mark.parametrize(("channels", "fewest", "sizes"), [(1, 1, {48}), (256, 1, {5, 3}), (256, 16, {16})])
def test_large_activations_come_in_small_batches(tmp_path: Path, channels: int, fewest: int, sizes: set[int]) -> None:
    """256 × 80 × 80 floats, read and written, are 12.5 MiB: five of them go into 64 MiB."""
    batches = draw_batches(Images(), 48, context(tmp_path), wide(channels), fewest=fewest)
    assert {len(batch) for batch in batches} == sizes
    assert len(torch.cat(list(batches))) == 48


def test_norms_are_set_to_batches_of_many_images_however_large(tmp_path: Path) -> None:
    network = wide(256)
    assert fit_norms(network, 48, context(tmp_path)) == 48
    assert network[1].num_batches_tracked == 3
