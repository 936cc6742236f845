"""Fold: every batch norm behind a convolution or linear layer goes into it, and nothing else changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.models import Spec
from edgewise.models._layers import SeparableConv
from edgewise.network import surgery
from edgewise.network.norm_pairs import find_norms
from edgewise.stage import Context
from edgewise.stages.fold import Fold


class Images:
    """Random bytes of one shape."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        draw = torch.Generator().manual_seed(count)
        self._images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)
        self.labels = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(tmp_path: Path, shape: tuple[int, int, int] = (3, 8, 8), notes: list[str] | None = None) -> Context:
    part = Images(4, shape)
    data = Data(name="random", train=part, calib=part, test=part, classes=("a",), shape=shape, digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=shape, mean=(0.5,), std=(0.25,), classifier="")
    return Context(spec=spec, data=data, scratch=tmp_path, note=[].append if notes is None else notes.append)


def lively(model: nn.Module) -> nn.Module:
    """Random weights, and batch norms far from the identity; one channel hardly varies."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(torch.rand(module.num_features, generator=draw) * 3 + 0.1)
            if module.affine:
                module.weight.data.copy_(torch.randn(module.num_features, generator=draw))
                module.bias.data.copy_(torch.randn(module.num_features, generator=draw))
    return model.eval()


def norms_of(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def assert_equal(before: nn.Module, after: nn.Module, shape: tuple[int, ...] = (5, 3, 8, 8)) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(after.eval()(images), before.eval()(images), rtol=1e-5, atol=1e-5)


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    "bias": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)),
    "reflect": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
    "same": lambda: nn.Sequential(nn.Conv2d(3, 4, (3, 5), padding="same", dilation=2), nn.BatchNorm2d(4)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False), nn.BatchNorm2d(6)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(4)),
    "transposed groups": lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3, dilation=2), nn.BatchNorm2d(6)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
    "not affine": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "separable": lambda: nn.Sequential(SeparableConv(3, 4, (3, 3), bias=False, multiplier=2), nn.BatchNorm2d(4)),
    "one after the other": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_every_kind_of_layer_takes_its_batch_norm_in(kind: str, tmp_path: Path) -> None:
    model = lively(CHAINS[kind]())
    folded = Fold()(model, context(tmp_path))
    assert not norms_of(folded)
    assert_equal(model, folded)


def test_hand_worked(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    model[1].weight.data.fill_(3)
    model[1].bias.data.fill_(1)
    model[2].running_mean.fill_(2)
    model[2].running_var.fill_(4)
    model[2].weight.data.fill_(6)
    model[2].bias.data.fill_(5)
    folded = Fold()(model, context(tmp_path, (1, 1, 1)))
    # scale 6 / sqrt 4 = 3; weight 3 * 3; bias (1 - 2) * 3 + 5
    assert folded[1].weight.item() == 9
    assert folded[1].bias.item() == 2


def test_input_is_left_as_it_was(tmp_path: Path) -> None:
    model = lively(CHAINS["dense"]()).train()
    before = copy.deepcopy(model.state_dict())
    folded = Fold()(model, context(tmp_path))
    assert norms_of(model) == ["1"] and model.training and folded.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not surgery.history(model)
    assert not model[0]._forward_hooks and not model[1]._forward_hooks


def test_rebuilt_from_its_history(tmp_path: Path) -> None:
    model = lively(CHAINS["transposed"]())
    folded = Fold()(model, context(tmp_path))
    (operation,) = surgery.history(folded)
    again = surgery.apply(CHAINS["transposed"](), surgery.Replace(**json.loads(json.dumps(asdict(operation)))))
    again.load_state_dict(folded.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(images), folded.eval()(images))


class Branches(nn.Module):
    """The convolution's output is added to its own batch norm's, and a batch norm stands before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.first = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 2, 1)
        self.spare = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        last: Tensor = self.last(self.first(torch.relu(self.norm(y) + y)))
        return last


def test_an_output_that_is_read_twice_is_not_changed(tmp_path: Path) -> None:
    model, notes = lively(Branches()), []
    kept = Fold(rest="keep")(model, context(tmp_path, notes=notes))
    assert norms_of(kept) == ["norm", "first", "spare"]
    assert_equal(model, kept)
    assert [note.split(":")[0] for note in notes[:3]] == ["norm", "first", "spare"]
    assert "read elsewhere" in notes[0] and "does not follow" in notes[1] and "runs 0 times" in notes[2]


def test_what_cannot_be_folded_becomes_depthwise(tmp_path: Path) -> None:
    model = lively(Branches())
    folded = Fold()(model, context(tmp_path))
    assert not norms_of(folded)
    assert folded.first.groups == 3 and folded.first.kernel_size == (1, 1)
    assert_equal(model, folded)


def test_in_place_activation_between_them_is_seen(tmp_path: Path) -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)))
    assert_equal(model, Fold()(model, context(tmp_path)))
    assert not find_norms(model, torch.randn(1, 3, 8, 8)).pairs


class Twice(nn.Module):
    """One convolution before two batch norms, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


def test_a_layer_that_runs_twice_keeps_its_values(tmp_path: Path) -> None:
    model = lively(Twice())
    assert find_norms(model, torch.randn(1, 3, 8, 8)).pairs == {}
    assert_equal(model, Fold()(model, context(tmp_path)))


def test_positions_of_a_sequence_are_not_channels(tmp_path: Path) -> None:
    model = lively(nn.Sequential(nn.Flatten(2), nn.Linear(64, 6), nn.BatchNorm1d(3), nn.Flatten()))
    norms = find_norms(model, torch.randn(2, 3, 8, 8))
    assert not norms.pairs and "positions" in norms.rest["2"]
    assert_equal(model, Fold()(model, context(tmp_path)))


def test_batch_statistics_are_kept_and_named(tmp_path: Path) -> None:
    notes: list[str] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert norms_of(Fold()(model, context(tmp_path, notes=notes))) == ["1"]
    assert "no running statistics" in notes[0]


class OwnForward(nn.Module):
    """A convolution that reaches its weight by a second way, which folding cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) + self.conv.weight.sum()
        return y


def test_a_changed_function_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="changed the network's outputs"):
        Fold()(lively(OwnForward()), context(tmp_path))


def test_nothing_to_fold_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert_equal(model, Fold()(model, context(tmp_path, notes=notes)))
    assert notes == ["no batch norm to fold"]


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(RequestError, match="wanted 'depthwise' or 'keep', found str 'drop'"):
        Fold(rest="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", models.names())
def test_every_registered_architecture(name: str, tmp_path: Path) -> None:
    spec = models.get(name)
    if "fold" in spec.cannot:
        pytest.skip(spec.cannot["fold"])
    model = lively(spec.build(num_classes=3, in_channels=spec.input_shape[0], **spec.small))
    shape = spec.small_input or spec.input_shape
    folded = Fold()(model, replace(context(tmp_path, shape), spec=spec))
    assert not [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        wanted, found = model(images), folded.eval()(images)
    assert float((wanted - found).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
