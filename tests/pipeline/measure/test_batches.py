"""How many images at once, and in which order in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.measure import batches
from edgewise.measure.answers import compute_logits
from edgewise.measure.batches import Ready, images_at_once, in_fastest_order


def net(width: int = 8) -> nn.Sequential:
    """Peak for an image 3 × 64 × 64: its input, 48 KiB, and ``width`` channels of 16 KiB while the convolution runs."""
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def test_a_batch_fits_its_activations_into_the_budget() -> None:
    peak = 4 * 64 * 64 * (3 + 8)
    assert images_at_once(net(), (3, 64, 64), budget=10 * peak) == 10
    assert images_at_once(net(), (3, 64, 64), budget=10 * peak - 1) == 9
    assert images_at_once(net(), (3, 64, 64), budget=1) == 1
    assert images_at_once(net(), (3, 64, 64), most=7) == 7


def test_small_images_go_as_many_at_once_as_ever() -> None:
    assert images_at_once(net(5000), (3, 32, 32), budget=1) == 256


def test_what_cannot_be_looked_into_goes_by_its_images() -> None:
    image = 4 * 3 * 64 * 64
    assert images_at_once(lambda images: images, (3, 64, 64), budget=32 * image) == 2


class Counted:
    """A network that remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return images.flatten(1).mean(1, keepdim=True)


class Images:
    """Grey images of 65 × 65; image n has the value n."""

    labels = torch.zeros(9, dtype=torch.int64)

    def __len__(self) -> int:
        return 9

    def batch(self, index: Tensor) -> Tensor:
        return index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 65, 65)


class Plain:
    mean, std = (0.0,), (1.0,)


def test_logits_come_in_order_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BYTES_AT_ONCE", 0)
    wanted = torch.arange(9) / 255
    network = Counted()
    assert torch.allclose(compute_logits(network, Images(), Plain(), batch=4)[:, 0], wanted)
    assert network.sizes == [4, 4, 1]
    network = Counted()
    assert torch.allclose(compute_logits(network, Images(), Plain())[:, 0], wanted)
    assert len(set(network.sizes)) > 0 and max(network.sizes) <= 256


def test_the_faster_order_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    images, network = torch.randn(2, 3, 65, 65), net().eval()
    for seconds, order in ((0.5, torch.channels_last), (0.95, torch.contiguous_format), (2.0, torch.contiguous_format)):

        def timed(ready: Ready, images: Tensor, seconds: float = seconds) -> float:
            return seconds if ready.order is torch.channels_last else 1.0

        monkeypatch.setattr(batches, "_time_batch", timed)
        found = in_fastest_order(network, images)
        assert found.order is order
        assert torch.allclose(found(images), network(images), atol=1e-5)
    assert network[0].weight.is_contiguous()


class Viewed(nn.Module):
    """Cannot take channels-last images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 65 * 65, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.view(len(images), -1))


def test_a_network_that_cannot_take_the_other_order_keeps_its_own() -> None:
    images, network = torch.randn(2, 3, 65, 65), Viewed().eval()
    assert in_fastest_order(network, images).network is network
    assert in_fastest_order(net(), torch.randn(2, 3, 8, 8)).order is torch.contiguous_format


def test_an_order_that_changes_the_answers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), float(images.is_contiguous()))

    monkeypatch.setattr(batches, "_time_batch", lambda ready, images: float(ready.order is not torch.channels_last))
    assert in_fastest_order(Strided(), torch.randn(2, 3, 65, 65)).order is torch.contiguous_format
