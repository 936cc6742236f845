"""Image sizes: what is asked for, what a network and a target can do, and where files are tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgewise import models
from edgewise.errors import RequestError
from edgewise.images.sizes import accepts_size, open_sides, sizes_to_try, with_main_size_first
from edgewise.models import get
from edgewise.run.one_graph import check_sizes
from edgewise.run.request import sizes_from_arguments
from edgewise.targets import Sizes

RANGE = Sizes(choices=((8, 8), (16, 16)), ranged=True)
LIST = Sizes(choices=((8, 8), (12, 10)))


@pytest.mark.parametrize(
    ("sizes", "bounds", "wanted"),
    [
        (None, None, None),
        ([[224, 160]], None, Sizes(choices=((224, 160),))),
        ([[8, 8], [12, 10]], None, LIST),
        (None, [8, 16], RANGE),
        ([[9, 12]], [8, 16], Sizes(choices=((9, 12), (8, 8), (16, 16)), ranged=True)),
    ],
)
def test_the_command_lines_words(sizes: Any, bounds: Any, wanted: Sizes | None) -> None:
    assert sizes_from_arguments(sizes, bounds) == wanted


@pytest.mark.parametrize(
    ("sizes", "bounds", "wanted"),
    [
        (None, [16, 8], "from the smaller to the larger, found 16 to 8"),
        ([[9, 20]], [8, 16], "the image size 9×20 lies outside the range 8 to 16"),
    ],
)
def test_words_that_make_no_range(sizes: Any, bounds: Any, wanted: str) -> None:
    with pytest.raises(RequestError, match=wanted):
        sizes_from_arguments(sizes, bounds)


def test_the_main_size_comes_first() -> None:
    assert with_main_size_first(RANGE, (10, 12)).choices == ((10, 12), (8, 8), (16, 16))
    assert with_main_size_first(RANGE, (32, 32)).choices == ((8, 8), (16, 16))
    assert with_main_size_first(LIST, (12, 10)).choices == LIST.choices
    assert with_main_size_first(Sizes(choices=((8, 8), (8, 8))), (1, 1)).kind == "fixed"


@pytest.mark.parametrize("choices", [(), ((0, 8),), ((8, 8), (-1, 8))])
def test_sizes_that_are_none(choices: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(RequestError, match="at least 1×1"):
        with_main_size_first(Sizes(choices=choices), (8, 8))


def test_files_are_tried_where_they_were_not_captured() -> None:
    assert sizes_to_try(None) == sizes_to_try(Sizes(choices=((8, 8),))) == ()
    assert sizes_to_try(LIST) == ((12, 10),)
    assert sizes_to_try(with_main_size_first(RANGE, (8, 8))) == ((10, 13), (16, 16))
    assert sizes_to_try(with_main_size_first(RANGE, (10, 12))) == ((8, 8), (10, 13), (16, 16))


def test_what_lies_inside() -> None:
    assert (
        accepts_size(RANGE, (8, 16))
        and accepts_size(RANGE, (11, 9))
        and not accepts_size(RANGE, (7, 8))
        and not accepts_size(RANGE, (8, 17))
    )
    assert accepts_size(LIST, (12, 10)) and not accepts_size(LIST, (10, 12)) and not accepts_size(LIST, (9, 9))


def test_sides_that_do_not_change_stay_closed() -> None:
    assert open_sides(None, (2, 3)) == open_sides(Sizes(choices=((8, 8),)), (2, 3)) == {}
    assert sorted(open_sides(RANGE, (1, 2))) == [1, 2]
    (only,) = open_sides(Sizes(choices=((8, 8), (8, 12))), (2, 3)).items()
    assert (only[0], only[1].min, only[1].max) == (3, 8, 12)


def able(*kinds: str) -> list[Any]:
    return [SimpleNamespace(name="fake", sizes=frozenset(kinds))]


def test_a_target_that_cannot_is_named() -> None:
    with pytest.raises(RequestError, match="'fake' writes no file for ranged image sizes, only enumerated or fixed"):
        check_sizes(nn.Identity(), "net", torch.zeros(1, 1, 8, 8), RANGE, able("fixed", "enumerated"))


REDUCED = {
    "vit_tiny_patch16_224": "does not take images of 48×32",
    "lenet5": "not one computation for all the sizes",
    "alexnet": "not one computation for all the sizes",
    "vgg11": "pools every image to a grid of 2×2",
    "mobilevit_xxs": "not one computation for all the sizes asked for, so that no file can hold it: at 96×64",
}
"""Why the architectures that are bound to one size refuse a list of two."""


@pytest.mark.parametrize("name", list(models.names()))
def test_every_architecture_takes_any_size_or_says_why_not(name: str) -> None:
    if name not in (*REDUCED, "tiny_resnet", "resnet20", "mobilenet_v2", "googlenet", "squeezenet1_1"):
        pytest.skip("a sibling of its family stands for it")
    spec = get(name)
    channels, height, width = spec.small_input or spec.input_shape
    network = spec.build(num_classes=spec.num_classes, in_channels=channels, **spec.small).eval()
    sizes = Sizes(choices=((height, width), (height * 3 // 2, width)))
    image = torch.zeros(1, channels, height, width)
    if name in REDUCED:
        with pytest.raises(RequestError, match=REDUCED[name]):
            check_sizes(network, name, image, sizes, able("fixed", "enumerated"))
    else:
        check_sizes(network, name, image, sizes, able("fixed", "enumerated"))
        assert sizes.kind == "enumerated"


def test_a_condition_that_fails_between_the_ends_of_a_range_is_found() -> None:
    class Even(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (2 * x if x.shape[3] % 2 else x).mean((2, 3))

    network = nn.Sequential(nn.Conv2d(1, 2, 1), Even())
    with pytest.raises(RequestError, match=r"at 8×9, Runtime assertion failed"):
        check_sizes(network, "net", torch.zeros(1, 1, 8, 8), RANGE, able("ranged"))


def test_a_network_that_branches_on_the_size_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x if x.shape[2] > 10 else 2 * x).mean((2, 3))

    network = nn.Sequential(nn.Conv2d(1, 2, 1), Branch())
    with pytest.raises(RequestError, match="net is not one computation for all the sizes asked for"):
        check_sizes(network, "net", torch.zeros(1, 1, 8, 8), RANGE, able("ranged"))


def test_a_grid_is_found_where_gradients_are_switched_off() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.fc = nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.pool(self.conv(x))
            return self.fc(x.flatten(1))

    with pytest.raises(RequestError, match="net pools every image to a grid of 2×2"):
        check_sizes(Frozen(), "net", torch.zeros(1, 1, 8, 8), RANGE, able("ranged"))


def test_a_bare_assertion_is_told_by_its_type() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[2] != x.shape[3]:
                raise AssertionError  # what a bare assert raises in a file of the user's
            return x.mean((2, 3))

    sizes = Sizes(choices=((8, 8), (8, 12)))
    with pytest.raises(RequestError, match=r"does not take images of 8×12: AssertionError\. Ask for other sizes"):
        check_sizes(Square(), "net", torch.zeros(1, 1, 8, 8), sizes, able("enumerated"))
