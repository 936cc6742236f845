"""Preprocessing and softmax around a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgewise.images.feed import feed_images
from edgewise.images.normalise import normalise
from edgewise.images.preprocess import OUTSIDE, Preprocess, blank_image
from edgewise.images.wrapper import NOTHING, Wrapper

MEAN, STD = (0.5, 0.25), (0.5, 0.125)


def baking(**fields: object) -> Wrapper:
    return Wrapper(preprocess=Preprocess(**fields), mean=MEAN, std=STD)  # type: ignore[arg-type]


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_bytes_are_normalised_by_hand_computed_values() -> None:
    # Channel 0: 255 -> (1 − 0.5) / 0.5 = 1, 0 -> −1. Channel 1: 255 -> (1 − 0.25) / 0.125 = 6, 51 -> (0.2 − 0.25) / 0.125.
    image = torch.tensor([[[[255, 255], [0, 51]]]], dtype=torch.uint8)  # [1, 1, 2, 2]: one row of two pixels
    found = baking(fed="bytes").around(Identity())(image)
    assert found.shape == (1, 2, 1, 2)
    assert torch.allclose(found, torch.tensor([[[[1.0, -1.0]], [[6.0, -0.4]]]]), atol=1e-6)


def test_bytes_and_normalised_images_give_the_network_the_same() -> None:
    class Spec:
        mean, std = MEAN, STD

    images = torch.randint(0, 256, (3, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inside = baking(fed="bytes").around(Identity())(feed_images(images, Spec(), "bytes"))
    assert torch.allclose(inside, normalise(images, Spec()), atol=2e-6)
    assert torch.equal(feed_images(images, Spec(), "normalised"), normalise(images, Spec()))
    turned = feed_images(images, Spec(), "channels-last")
    assert turned.shape == (3, 5, 4, 2) and torch.equal(turned[2, 1, 3, 1], normalise(images, Spec())[2, 1, 1, 3])
    assert torch.equal(baking(fed="channels-last").around(Identity())(turned), normalise(images, Spec()))


def test_softmax_turns_logits_into_probabilities() -> None:
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    around = baking(softmax=True).around(Identity())
    assert torch.allclose(around(logits), torch.tensor([[0.25, 0.75]]))
    assert torch.allclose(Preprocess(softmax=True).finished(logits), torch.tensor([[0.25, 0.75]]))
    assert OUTSIDE.finished(logits) is logits


def test_nothing_asked_for_leaves_the_network_alone() -> None:
    network = Identity()
    assert NOTHING.around(network) is network
    assert Wrapper(preprocess=OUTSIDE, mean=MEAN, std=STD).around(network) is network


@pytest.mark.parametrize(
    ("fed", "shape", "dtype", "sides"),
    [
        ("normalised", (1, 2, 5, 4), torch.float32, (2, 3)),
        ("channels-last", (1, 5, 4, 2), torch.float32, (1, 2)),
        ("bytes", (1, 5, 4, 2), torch.uint8, (1, 2)),
    ],
)
def test_what_a_file_is_fed(fed: str, shape: tuple[int, ...], dtype: torch.dtype, sides: tuple[int, int]) -> None:
    example = baking(fed=fed).example((2, 5, 4))
    assert (tuple(example.shape), example.dtype) == (shape, dtype)
    assert [example.shape[side] for side in baking(fed=fed).sides] == [5, 4]
    assert torch.equal(blank_image((2, 5, 4), fed), example)  # type: ignore[arg-type]
