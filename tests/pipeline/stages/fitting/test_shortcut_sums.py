"""Where a layer's answers meet another branch, on networks whose sums are seen at a glance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgewise.stages.fitting.shortcut_sums import Sum, capture_meeting, find_sums


class Branches(nn.Module):
    """Two layers, whose answers ``join`` puts together."""

    def __init__(self, join: Callable[[Branches, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def late(net: Branches, x: Tensor) -> Tensor:
    return net.first(x) + net.second(x)


def relu_inside(net: Branches, x: Tensor) -> Tensor:
    return net.first(x).relu_() + x


def in_place(net: Branches, x: Tensor) -> Tensor:
    out = net.first(x)
    out += x
    return net.second(out)


CASES = {
    "a shortcut": (lambda net, x: net.second(x + net.first(x)), {"first": Sum(0, 0)}),
    "the other way round": (lambda net, x: net.second(net.first(x) + x), {"first": Sum(0, 1)}),
    "in place": (in_place, {"first": Sum(0, 1)}),
    "the later of two branches": (late, {"second": Sum(0, 0)}),
    "a second sum": (lambda net, x: net.second(x + x) + x, {"second": Sum(1, 1)}),
    "changed in between": (lambda net, x: net.first(x).relu() + x, {}),
    "changed in place in between": (relu_inside, {}),
    "a number": (lambda net, x: net.second(net.first(x) + 1.0), {}),
    "a branch that comes later": (lambda net, x: net.first(x) + x.relu(), {}),
    "another shape": (lambda net, x: net.first(x) + x.mean(), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_sums_are_found(case: str) -> None:
    join, wanted = CASES[case]
    ends = {"first": "first", "second": "second"}
    assert find_sums(Branches(join), ends, torch.rand(2, 4)) == wanted


def test_what_was_met_is_told() -> None:
    net, x = Branches(CASES["a second sum"][0]), torch.rand(2, 4)
    met = capture_meeting(net, "second", Sum(1, 1), x)
    assert met.other is x
    torch.testing.assert_close(met.given, 2 * x)
    torch.testing.assert_close(met.answered, net.second(2 * x))
    assert capture_meeting(net, "second", None, x).other is None


def test_the_network_runs_no_further_than_needed() -> None:
    ran: list[str] = []
    net = Branches(CASES["a shortcut"][0])
    net.second.register_forward_hook(lambda *_: ran.append("second"))
    capture_meeting(net, "first", Sum(0, 0), torch.rand(2, 4))
    capture_meeting(net, "first", None, torch.rand(2, 4))
    assert ran == []


def test_the_norm_behind_stands_for_the_layer() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.skip = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.layer(x)) + self.skip(x)
            return out

    assert find_sums(Normed().eval(), {"layer": "norm"}, torch.rand(1, 2, 3, 3)) == {"layer": Sum(0, 1)}
