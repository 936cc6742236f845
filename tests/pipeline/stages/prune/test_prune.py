"""The stage: budgets, rounding, what it refuses, and that its result is rebuilt from surgery and tensors."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewise import models
from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.measure.cost.totals import count_costs
from edgewise.network import surgery
from edgewise.stage import Context
from edgewise.stages.prune import IMPORTANCES, Prune, checked_cut
from edgewise.stages.prune.coupling import Coupling
from edgewise.stages.prune.importance import IMPORTANCES as MEASURES
from edgewise.stages.training.settings import Training


class Noise:
    """Random images with random labels."""

    def __init__(self, size: int, shape: tuple[int, int, int], classes: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self._images = torch.randint(0, 256, (size, *shape), generator=draw, dtype=torch.uint8)
        self.labels = torch.randint(0, classes, (size,), generator=draw)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(spec: models.Spec, shape: tuple[int, int, int] | None = None) -> Context:
    shape = shape or spec.small_input or spec.input_shape
    part = Noise(16, shape, 10)
    classes = tuple(map(str, range(10)))
    data = Data(name="noise", train=part, calib=part, test=part, classes=classes, shape=shape, digest="0")
    return Context(spec=spec, data=data, scratch=Path("unused"))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return models.get("tiny_resnet").build(width=16)


TINY = context(models.get("tiny_resnet"))


def widths(model: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_budget_is_met_from_below_within_three_per_cent(budget: str) -> None:
    model = tiny()
    pruned = Prune(**{budget: 0.5}, round_to=2)(model, TINY)
    left = [getattr(count_costs(net, (1, 8, 8)), budget) for net in (pruned, model)]
    assert 0.47 <= left[0] / left[1] <= 0.5


@pytest.mark.parametrize("steps", [1, 3])
def test_a_ratio_takes_that_share_of_all_channels(steps: int) -> None:
    # Independent groups of tiny_resnet at width 16: three residual streams and the insides of three blocks.
    model = tiny()
    groups = ("stem.0", "stages.1.conv2.0", "stages.2.conv2.0", *(f"stages.{k}.conv1.0" for k in range(3)))
    pruned = widths(Prune(channels=0.75, round_to=1, steps=steps)(model, TINY))
    assert sum(widths(model)[name] for name in groups) == 224
    assert sum(pruned[name] for name in groups) == 168


def test_a_layer_ratio_takes_that_share_of_every_layer() -> None:
    model = tiny()
    pruned = Prune(channels=0.5, scope="layer", round_to=1)(model, TINY)
    assert widths(pruned) == {name: width // 2 for name, width in widths(model).items()}


@pytest.mark.parametrize("block", [4, 8])
def test_every_width_is_a_multiple_of_round_to(block: int) -> None:
    pruned = Prune(macs=0.6, round_to=block)(tiny(), TINY)
    assert all(width % block == 0 for width in widths(pruned).values())


def test_a_layer_ratio_goes_to_the_nearest_multiple() -> None:
    # 16, 32 and 64 channels less 30 % are 11.2, 22.4 and 44.8; the nearest multiples of 8 are 8, 24 and 48.
    pruned = widths(Prune(channels=0.7, scope="layer", round_to=8)(tiny(), TINY))
    assert [pruned[f"stages.{k}.conv1.0"] for k in range(3)] == [8, 24, 48]


def test_no_layer_loses_more_than_its_cap() -> None:
    model = tiny()
    pruned = Prune(macs=0.45, round_to=1, min_layer=0.5)(model, TINY)
    assert all(width >= widths(model)[name] / 2 for name, width in widths(pruned).items())


def test_the_cap_counts_from_the_unpruned_width_over_all_steps() -> None:
    model = tiny()
    pruned = Prune(macs=0.45, round_to=1, min_layer=0.5, steps=4)(model, TINY)
    assert all(width >= widths(model)[name] / 2 for name, width in widths(pruned).items())


def test_the_classes_and_the_kept_layers_stay() -> None:
    pruned = Prune(macs=0.4, round_to=1, keep=("stages.1.conv1.0",))(tiny(), TINY)
    assert pruned.get_submodule("linear").out_features == 10
    assert widths(pruned)["stages.1.conv1.0"] == 32


@pytest.mark.parametrize("training", [True, False])
def test_the_input_is_untouched_and_the_mode_kept(training: bool) -> None:
    model = tiny().train(training)
    model.stem.eval()
    before, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    pruned = Prune(channels=0.5, round_to=4, importance="taylor")(model, TINY)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert str(model) == str(before) and surgery.history(model) == ()
    assert all(p.grad is None for p in model.parameters())
    modes = [(name, module.training) for name, module in before.named_modules()]
    assert modes == [(name, m.training) for name, m in model.named_modules()]
    assert modes == [(name, m.training) for name, m in pruned.named_modules()]
    assert all(p.requires_grad for p in pruned.parameters())


def test_the_same_request_gives_the_same_network() -> None:
    for importance in ("random", "taylor"):
        first, second = (Prune(channels=0.5, importance=importance, round_to=1)(tiny(), TINY) for _ in range(2))
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        )


def test_it_can_be_pruned_again() -> None:
    first = Prune(channels=0.75, round_to=4)(tiny(), TINY)
    second = Prune(channels=0.75, round_to=4)(first, TINY)
    assert count_costs(second, (1, 8, 8)).macs < count_costs(first, (1, 8, 8)).macs
    assert len(surgery.history(second)) == 2


REBUILD = """
import json, sys
import torch
from safetensors.torch import load_file
from edgewise import models
from edgewise.network import surgery
folder, name, width = sys.argv[1:]
model = models.get(name).build(width=int(width))
for fields in json.load(open(folder + "/surgery.json")):
    model = surgery.apply(model, surgery.Resize(**fields))
tensors = load_file(folder + "/tensors.safetensors")
images, expected = tensors.pop("images"), tensors.pop("expected")
model.load_state_dict(tensors, strict=True)
sys.exit(0 if torch.equal(model.eval()(images), expected) else 9)
"""


@pytest.mark.parametrize(("name", "width"), [("tiny_resnet", 16), ("resnet20", 8)])
def test_a_fresh_process_rebuilds_it_bit_for_bit(name: str, width: int, tmp_path: Path) -> None:
    spec = models.get(name)
    model = spec.build(width=width).eval()
    ctx = context(spec)
    pruned = Prune(macs=0.6, round_to=1)(Prune(channels=0.75, round_to=1)(model, ctx), ctx)
    images = torch.randn(2, *ctx.input_shape)
    with torch.no_grad():
        extra = {"images": images, "expected": pruned(images)}
    save_file({**pruned.state_dict(), **extra}, tmp_path / "tensors.safetensors")
    operations = [dataclasses.asdict(operation) for operation in surgery.history(pruned)]
    (tmp_path / "surgery.json").write_text(json.dumps(operations))
    done = subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path), name, str(width)], check=False)
    assert done.returncode == 0


def test_nothing_to_remove_is_an_error() -> None:
    with pytest.raises(StageError, match=r"changed nothing.*round_to \(16\)"):
        Prune(channels=0.99, scope="layer", round_to=16)(tiny(), TINY)


def test_a_budget_out_of_reach_says_how_far_it_gets() -> None:
    with pytest.raises(StageError, match=r"wanted 5\.0% .* \d+\.\d% are left.*round_to"):
        Prune(macs=0.05, round_to=8)(tiny(), TINY)


def test_a_layer_ratio_that_would_empty_a_layer_names_it() -> None:
    with pytest.raises(StageError, match=r"would empty layer stem\.0 \(8 channels\)"):
        Prune(channels=0.11, scope="layer", round_to=1)(models.get("tiny_resnet").build(width=8), TINY)


def test_a_threshold_that_would_empty_a_layer_names_it() -> None:
    model = tiny()
    for member in (model.stages[0].conv1, model.stages[0].conv2):
        nn.init.constant_(member[0].weight, 1e-6)
    nn.init.zeros_(model.stages[0].conv1[1].weight)
    with pytest.raises(StageError, match=r"would empty layer stages\.0\.conv1\.0 \(16 channels\)"):
        Prune(channels=0.5, round_to=1, min_layer=0, importance="bn_scale")(model, TINY)


def test_a_network_of_its_classifier_alone_cannot_be_pruned() -> None:
    spec = dataclasses.replace(TINY.spec, classifier="1")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(StageError, match=r"no layer .* can be pruned: 1: .*outputs"):
        Prune(channels=0.5)(model, dataclasses.replace(TINY, spec=spec))


class Turned(nn.Module):
    """Moves the channels on by three, so that which follows which depends on how many there are."""

    def __init__(self, second: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.both = not second

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).roll(3, 1))
        return self.head((x.roll(3, 1) if self.both else x).mean((2, 3)))


def turned(**fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    facts: dict[str, Any] = {}
    ctx = dataclasses.replace(TINY, spec=dataclasses.replace(TINY.spec, classifier="head"), fact=facts.__setitem__)
    torch.manual_seed(0)
    return Prune(channels=0.75, scope="layer", round_to=1)(Turned(**fields), ctx), facts


def test_what_is_cut_wrongly_is_left_alone_with_the_reason_and_the_rest_is_pruned() -> None:
    pruned, facts = turned()
    assert (pruned.first.out_channels, pruned.second.out_channels) == (8, 6)
    told = {alone["layer"]: alone for alone in facts["left_alone"]}
    assert told.keys() == {"first", "head"} and (told["first"]["width"], told["first"]["stay"]) == (8, 8)
    assert (
        "a cut of them would be wrong (they pass roll in the network's own forward): logits differ by"
        in (told["first"]["reason"])
    )
    assert "outputs" in told["head"]["reason"]


def test_a_network_in_which_every_cut_is_wrong_is_refused_with_every_layer() -> None:
    with pytest.raises(
        StageError, match=r"no layer .* can be pruned: .*first: .*they pass roll.*second: .*they pass roll"
    ):
        turned(second=False)


class Functional(nn.Module):
    """Reads ``first`` with the weights of ``second``, which never runs as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(self.first(x).relu(), self.second.weight, self.second.bias)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize(("importance", "widths"), [("taylor", (8, 6)), ("activation", (8, 6)), ("l2", (6, 6))])
def test_what_is_read_by_a_function_is_cut_by_its_weights_alone(importance: Any, widths: tuple[int, int]) -> None:
    ctx = dataclasses.replace(TINY, spec=dataclasses.replace(TINY.spec, classifier="head"))
    torch.manual_seed(0)
    pruned = Prune(channels=0.75, scope="layer", round_to=1, importance=importance)(Functional(), ctx)
    assert (pruned.first.out_channels, pruned.second.out_channels) == widths


def rolled(coupling: Coupling, name: str) -> Coupling:
    """A wrong coupling: the reader of one group takes the channels that stand one further on."""
    groups = []
    for group in coupling.groups:
        members = [
            dataclasses.replace(m, channels=m.channels.roll(1, 0)) if group.name == name and m.side == "in" else m
            for m in group.members
        ]
        groups.append(dataclasses.replace(group, members=tuple(members)))
    return dataclasses.replace(coupling, groups=tuple(groups))


@pytest.mark.parametrize("late", [False, True], ids=["before it counts", "at the cut"])
@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"channels": 0.75, "scope": "layer", "steps": 2}], ids=str)
def test_a_planted_wrong_coupling_costs_that_group_alone(
    late: bool, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find, wrong = checked_cut.couple_channels, "stages.1.conv1.0"
    monkeypatch.setattr(checked_cut, "couple_channels", lambda *args: rolled(find(*args), wrong))
    if late:
        monkeypatch.setattr(checked_cut.proof, "wrong_group", lambda *_: None)
    facts: dict[str, Any] = {}
    model = tiny()
    pruned = Prune(**budget, round_to=1)(model, dataclasses.replace(TINY, fact=facts.__setitem__))
    assert widths(pruned)[wrong] == 32 and widths(pruned)["stages.0.conv1.0"] < 16
    told = {alone["layer"]: alone["reason"] for alone in facts["left_alone"]}
    assert "logits differ by" in told[wrong] and told.keys() == {wrong, "linear"}
    if "macs" in budget:
        assert count_costs(pruned, (1, 8, 8)).macs <= 0.6 * count_costs(model, (1, 8, 8)).macs


def test_an_architecture_that_says_why_not_is_refused_with_its_reason() -> None:
    spec = dataclasses.replace(TINY.spec, cannot={"prune": "its widths are fixed in silicon"})
    with pytest.raises(RequestError, match="tiny_resnet cannot be pruned: its widths are fixed in silicon"):
        Prune(channels=0.5)(tiny(), dataclasses.replace(TINY, spec=spec))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 0.3}, r"Prune\.ratio was a share to remove; .* say channels=0\.7"),
        ({"macs": 0.5, "max_layer_ratio": 0.8}, r"max_layer_ratio was a share to remove; .* say min_layer=0\.2"),
        ({}, "exactly one of channels, macs, params, bytes, latency, milliseconds, or max_drop, found none"),
        ({"channels": 0.5, "macs": 0.5}, "found channels, macs"),
        ({"channels": 1.5}, r"Prune\.channels must lie in 0 … 1, 0 and 1 excluded, found 1\.5"),
        ({"channels": 0.0}, "found 0"),
        ({"macs": float("nan")}, "found nan"),
        ({"params": 1.0}, "found 1"),
        ({"channels": 0.5, "importance": "l3"}, "wanted 'l1', .* found str 'l3'"),
        ({"channels": 0.5, "scope": "local"}, "wanted 'global', 'layer' or 'sensitivity', found str 'local'"),
        ({"latency": 1.2}, r"Prune\.latency must lie in 0 … 1, 0 and 1 excluded"),
        ({"milliseconds": 0.0}, r"Prune\.milliseconds must lie in 0 .* 0 excluded, found 0"),
        ({"bytes": -3.0}, r"Prune\.bytes must lie in 0 .* 0 excluded, found -3"),
        ({"max_drop": -0.1}, r"Prune\.max_drop must lie in 0 … 1"),
        ({"macs": 0.5, "scan": (0.5, 1.0)}, r"Prune\.scan\[1\] must lie in 0 … 1, 0 and 1 excluded, found 1"),
        ({"macs": 0.5, "training": object()}, "wanted an instance of Training"),
        ({"macs": 0.5, "training": Training(epochs=1, lr=0.1)}, "trials of max_drop"),
        ({"channels": 0.5, "round_to": 0}, "round_to"),
        ({"channels": 0.5, "steps": 0}, "steps"),
        ({"channels": 0.5, "min_layer": 1.0}, "min_layer"),
        ({"channels": 0.05, "scope": "layer"}, r"0\.05 of every layer is less than min_layer 0\.1"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_runs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Prune(**fields)


def test_a_kept_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(StageError, match=r"does not have: stages\.9"):
        Prune(channels=0.5, keep=("stages.9",))(tiny(), TINY)


def test_the_stage_knows_every_importance() -> None:
    assert IMPORTANCES == MEASURES


def test_naming_the_stage_imports_no_torch() -> None:
    code = "import sys, edgewise.stages.prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
