"""Budgets of time and of bytes, measured on real files of small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import StageError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.fitting import timer
from edgewise.stages.prune import Prune, latency_table
from edgewise.store.entries import Store

SHAPE = (3, 32, 32)


class Noise:
    """Random bytes."""

    labels = torch.zeros(16, dtype=torch.int64)

    def __len__(self) -> int:
        return 16

    def batch(self, index: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (16, *SHAPE), dtype=torch.uint8, generator=draw)[index]


def net() -> nn.Module:
    """Three convolutions of 64 channels, long enough that a call's own time does not matter."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def context(folder: Path, told: dict[str, Any], **fields: Any) -> Context:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    part = Noise()
    classes = tuple(map(str, range(10)))
    data = Data(name="noise", train=part, calib=part, test=part, classes=classes, shape=SHAPE, digest="0")
    spec = Spec(name="net", build=net, input_shape=SHAPE, mean=(0.5,), std=(0.25,), classifier="5")
    return Context(spec=spec, data=data, scratch=folder, fact=told.__setitem__, **fields)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "POINTS", 2)
    monkeypatch.setattr(latency_table, "_SECONDS_EACH", 0.05)
    monkeypatch.setattr(timer, "_SECONDS", 0.5)


@pytest.mark.usefixtures("quick")
def test_a_time_budget_is_kept_and_told_beside_its_prediction(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    pruned = Prune(latency=0.6, round_to=16)(net(), context(tmp_path, told))
    budget = told["budget"]
    assert budget["budget"] == "milliseconds" and budget["on"] == "onnx"
    assert budget["wanted"] == pytest.approx(0.6 * budget["before"])
    assert budget["measured"] <= 1.02 * budget["wanted"]
    assert budget["trials"] and budget["predicted"] in [trial["predicted"] for trial in budget["trials"]]
    widths = [layer.out_channels for layer in pruned if isinstance(layer, nn.Conv2d)]
    assert all(width % 16 == 0 for width in widths) and sum(widths) < 3 * 64
    assert told["widths"] == {name: [64, width] for name, width in zip("012", widths, strict=True)}
    assert not list(tmp_path.glob("tmp*")), "the timed files are gone"


@pytest.mark.usefixtures("quick")
def test_milliseconds_already_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"wanted at most 1e\+03 ms; the network has .* ms already"):
        Prune(milliseconds=1000)(net(), context(tmp_path, {}))


@pytest.mark.usefixtures("quick")
def test_layers_in_the_store_are_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.stages.prune.checked_cut import find_groups

    ctx = context(tmp_path, {}, store=Store(tmp_path / "store"), machine="here")
    model = net()
    groups = find_groups(model, Prune(latency=0.5), ctx).groups
    first = latency_table.tabulate_layers(model, groups, ctx)
    assert first.ms((0, 0, 0)) > first.ms((32, 32, 32)) > 0
    monkeypatch.setattr(latency_table, "_time_layers", None)
    assert latency_table.tabulate_layers(model, groups, ctx).ms((0, 0, 0)) == first.ms((0, 0, 0))
    with pytest.raises(TypeError):
        latency_table.tabulate_layers(model, groups, context(tmp_path, {}, store=ctx.store, machine="there"))


@pytest.mark.parametrize("size", [0.5, 100_000.0])
def test_a_file_has_at_most_the_bytes_asked_for(size: float, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    pruned = Prune(bytes=size, round_to=1)(net(), context(tmp_path, told))
    with timer.open_clock(pruned, context(tmp_path, {})) as watch:
        found = watch.bytes
    budget = told["budget"]
    wanted = size * budget["before"] if size < 1 else size
    assert 0.93 * wanted < found <= wanted
    assert (budget["measured"], budget["wanted"]) == (pytest.approx(found), pytest.approx(wanted))


def test_a_runtime_that_does_not_run_here_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from edgewise import targets

    if targets.get("coreml").load is not None:
        pytest.skip("Core ML runs on this host")
    with pytest.raises(StageError, match="coreml does not run on this host"):
        Prune(latency=0.5)(net(), context(tmp_path, {}, runtime="coreml"))
