"""Networks that are not all there: layers that PyTorch does not know of, parts that take no copy."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn

from edgewise.errors import RequestError
from edgewise.network.whole import check_whole


class Net(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    "hidden",
    [
        [nn.Linear(2, 2), nn.Linear(2, 2)],
        (nn.Linear(2, 2), [nn.Linear(2, 2)]),
        {"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)},
    ],
)
def test_layers_in_python_s_own_containers_are_told(hidden: Any) -> None:
    kind = type(hidden).__name__
    with pytest.raises(RequestError, match=rf"net: self\.layers holds 2 layers, Linear first, in a {kind}"):
        check_whole(Net(layers=hidden), "net")
    with pytest.raises(RequestError, match=r"self\.layers of layer '0' holds"):
        check_whole(nn.Sequential(Net(layers=hidden)), "net")


def test_lists_of_layers_that_are_registered_too_and_of_those_without_weights_are_fine() -> None:
    model = Net(act=[nn.ReLU()], sizes=[1, 2], names={"a": "b"})
    model.order = [model.fc]  # type: ignore[assignment]
    before = copy.deepcopy(model.state_dict())
    check_whole(model, "net")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("stuck", [threading.Lock(), (value for value in ())])
def test_what_takes_no_copy_is_named(stuck: Any) -> None:
    with pytest.raises(RequestError, match=r"self\.stuck of layer '1' takes no copy"):
        check_whole(nn.Sequential(nn.ReLU(), Net(stuck=stuck)), "net")
