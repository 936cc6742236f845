"""Whether a layer of a user's class computes what its attributes say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.stages.fitting.layer_io import computes_as_declared


class Plain(nn.Conv2d):
    """Another name for the same."""


class Padded(nn.Conv2d):
    """Pads by itself, as networks in TensorFlow's manner do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 2, 2, 2)))


def test_a_subclass_is_tried_on_what_it_was_given() -> None:
    x = torch.randn(2, 3, 6, 6)
    for layer, same in ((Plain(3, 4, 3), True), (Padded(3, 4, 5), False)):
        with torch.no_grad():
            assert computes_as_declared(layer, x, layer(x)) is same


def test_an_input_smaller_than_the_kernel_is_no_error() -> None:
    layer, x = Padded(3, 4, 5), torch.randn(2, 3, 3, 3)
    with torch.no_grad():
        assert not computes_as_declared(layer, x, layer(x))
