"""The plan under an accuracy budget: what joins, what is refused, and what is told of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import RequestError, StageError
from edgewise.measure.statistics import divergence
from edgewise.models import Spec
from edgewise.models._layers import GlobalMean, SeparableConv
from edgewise.stage import Context
from edgewise.stages.separate import Separate
from edgewise.stages.separate.budget import Judge
from edgewise.stages.separate.timing import Times


class Images:
    """Random bytes with the labels that a network gives them."""

    def __init__(self, size: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self._images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=draw)
        self.labels = torch.zeros(size, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def net() -> nn.Module:
    """Three convolutions, the middle one exactly separable, whose classes the image decides."""
    draw = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), GlobalMean(), nn.Linear(8, 4),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) / max(1, parameter[0].numel()) ** 0.5)
    filters = torch.randn(1, 8, 3, 3, generator=draw)
    model[2].weight.data.copy_(torch.randn(8, 8, 1, 1, generator=draw) * filters / 6)
    return model.eval()


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """Data that the network of ``net`` classifies without an error, and a third that nothing else may read."""
    train, calib = Images(120, 0), Images(90, 1)
    data = Data(
        name="noise", train=train, calib=calib, test=calib, classes=("a", "b", "c", "d"), shape=(3, 8, 8), digest="0"
    )
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 8, 8), mean=(0.5,), std=(0.25,), classifier="6")
    found = Context(spec=spec, data=data, scratch=tmp_path)
    calib.labels = Judge(ctx=found).answers(net()).argmax(1)
    assert len(calib.labels.unique()) > 1
    return found


def told(ctx: Context, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    facts: dict[str, Any] = {}
    settings = {"images": 64, "measure_time": False} | settings
    found = Separate(**settings)(net(), replace(ctx, fact=facts.__setitem__))
    json.dumps(facts, allow_nan=False)
    return found, facts["plan"]


def test_divergence_by_hand() -> None:
    # Classes 3/4 and 1/4 where the reference says 1/2 and 1/2: (ln 2/3 + ln 2) / 2 nats; the second image agrees.
    ours = torch.tensor([[math.log(3.0), 0.0], [2.0, 1.0]])
    reference = torch.tensor([[5.0, 5.0], [3.0, 2.0]])
    assert divergence(ours, reference) == pytest.approx((math.log(2 / 3) + math.log(2)) / 2 / 2)
    assert divergence(reference, reference) == 0


def test_an_exact_layer_comes_first_and_a_costly_one_stays(ctx: Context) -> None:
    found, plan = told(ctx, max_drop=0.0)
    layers = {layer["name"]: layer for layer in plan["layers"]}
    assert layers["2"]["accepted"] and layers["2"]["top1"] == 1.0 and layers["2"]["cost"] < 1e-6
    assert "1st by cost for what it saves" in layers["2"]["reason"]
    refused = [layer for layer in plan["layers"] if not layer["accepted"]]
    assert refused and all("0 points allowed" in layer["reason"] and layer["top1"] < 1 for layer in refused)
    assert isinstance(found[2], SeparableConv) and plan["calibration"]["substituted"] == 1.0


def test_the_budget_holds_for_all_layers_together(ctx: Context) -> None:
    _, free = told(ctx)
    assert free["accepted"] == 3
    most = 1 - free["calibration"]["substituted"]
    assert most > 0.02, "the third layer must cost something, or the test shows nothing"
    _, plan = told(ctx, max_drop=most - 0.011)
    assert 0 < plan["accepted"] < 3
    assert 1 - plan["calibration"]["substituted"] <= most - 0.011 + 0.02
    _, whole = told(ctx, max_drop=1.0)
    assert whole["accepted"] == 3 and whole["calibration"] == free["calibration"]


def test_facts_say_what_the_accepted_layers_save(ctx: Context) -> None:
    _, plan = told(ctx, max_drop=1.0, recover_steps=2, recover_batch=8)
    # 64 pixels of 9·3·8 and two of 9·8·8 multiply-accumulates; 9·3 + 3·8 and 9·8 + 8·8 after.
    assert plan["dense_macs"] == 64 * (216 + 2 * 576) and plan["new_macs"] == 64 * (51 + 2 * 136)
    assert plan["calibration"].keys() == {"n", "before", "substituted", "distilled"} and plan["calibration"]["n"] == 90
    assert (plan["into"], plan["timed_on"]) == ("depthwise", None)


def test_fewer_layers_than_the_budget_takes(ctx: Context) -> None:
    _, plan = told(ctx, max_drop=1.0, max_layers=1)
    assert [layer["name"] for layer in plan["layers"] if layer["accepted"]] == ["2"]
    assert plan["layers"][0]["reason"] == "1 others cost less for what they save"


def test_time_saved_decides_the_order(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact layer costs next to nothing; of the other two the one that saves more time is tried first."""
    times = {
        name: Times(dense_ms=1.0, new_ms=1 - saved, ratio_ci95=(0.1, 0.9))
        for name, saved in {"0": 1e-6, "2": 0.5, "4": 0.5}.items()
    }
    monkeypatch.setattr("edgewise.stages.separate.layer_times", lambda *_: times)
    _, plan = told(ctx, max_drop=1.0, measure_time=True)
    assert "3rd by cost" in plan["layers"][0]["reason"] and plan["timed_on"] == "onnx"
    assert plan["layers"][0]["dense_ms"] == 1.0


def test_a_budget_that_nothing_meets_is_an_error(ctx: Context) -> None:
    with pytest.raises(StageError, match="0 points allowed"):
        told(ctx, max_drop=0.0, keep=("2",))


def test_impossible_budgets_are_refused() -> None:
    for settings in ({"max_drop": -0.1}, {"max_drop": 1.5}, {"share": 0.0}, {"into": "round"}):
        with pytest.raises(RequestError):
            Separate(**settings)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="set share"):
        Separate(into="spatial", rank=2)
