"""Sensitivity of layers to quantization, and the float fall-back of the worst."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgewise.errors import RequestError
from edgewise.measure import statistics
from edgewise.network import checkpoint, graph_layers
from edgewise.network.architecture import Base, build
from edgewise.network.captured import Prepare, convert, export_graph
from edgewise.network.checkpoint import Checkpoint
from edgewise.report import quantization
from edgewise.stage import track_silently
from edgewise.stages.quantize import Quantize, sensitivity
from edgewise.stages.quantize.sensitivity import Cost
from edgewise.targets import Grid

SOURCE = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
"""
IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    (tmp_path / "net.py").write_text(SOURCE, encoding="utf-8")
    return Base(f"{tmp_path}/net.py:net", 2, 1)


def network(base: Base) -> nn.Module:
    """Its second convolution has an output channel a thousand times as large as the others, which nothing reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(base).eval()
    with torch.no_grad():
        model[2].weight[0].abs_().mul_(1000)
        model[5].weight[:, :16] = 0
        model[5].weight.mul_(20)
    return model


def prepared(model: nn.Module, left: tuple[str, ...] = ()) -> Any:
    graph = Prepare(Grid().to_json(), (1, 8, 8), left).capture(model)
    with torch.no_grad():
        graph(IMAGES)
    return graph


def test_the_layer_whose_quantization_costs_most_comes_first(base: Base) -> None:
    scan = sensitivity.Scan(prepared(network(base)), [IMAGES])
    assert {name: operation for name, (operation, _) in scan.layers.items()} == {
        "0": "conv2d",
        "2": "conv2d",
        "5": "linear",
    }
    costs = sensitivity.measure_sensitivity(scan, track_silently)
    by_name = {cost.layer: cost for cost in costs}
    # The wide channel takes all steps of the grid: the others, which the linear layer reads, are rounded to nothing.
    assert by_name["2"].kl > 20 * by_name["0"].kl
    assert by_name["2"].agreement < by_name["0"].agreement
    assert costs[0].kl == max(cost.kl for cost in costs)


def test_a_scan_leaves_the_graph_as_it_was(base: Base) -> None:
    graph = prepared(network(base))
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    sensitivity.measure_sensitivity(sensitivity.Scan(graph, [IMAGES]), track_silently)
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.state_dict().items())


def test_divergence_by_hand() -> None:
    uniform, certain = torch.zeros(1, 2), torch.tensor([[1.0986122887, 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    # KL(reference ‖ own) = 3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2) = 0.1308
    assert statistics.divergence(uniform, certain) == pytest.approx(0.13081203594)
    assert statistics.divergence(certain, certain) == 0


class Fake:
    """A scan of layers that each cost a stated number of the ten images."""

    def __init__(self, **lost: int) -> None:
        self.lost, self.layers = lost, dict.fromkeys(lost)
        self.plain = self.answers(())

    def answers(self, quantized: Any) -> torch.Tensor:
        wrong = sum(self.lost[name] for name in quantized)
        right = torch.arange(10) >= wrong
        return torch.stack([right.float(), 1 - right.float()], 1)


@pytest.mark.parametrize(
    ("budget", "most", "left"),
    [(0.9, 3, ()), (0.35, 3, ("a",)), (0.1, 3, ("a", "b")), (0.0, 3, ("a", "b", "c")), (0.0, 1, ("a",)), (0.0, 0, ())],
)
def test_as_few_layers_as_the_budget_wants_stay_in_float(budget: float, most: int, left: tuple[str, ...]) -> None:
    scan = Fake(c=1, a=4, b=2)
    costs = [
        Cost(layer=name, operation="conv2d", kl=kl, agreement=1.0) for name, kl in (("a", 3.0), ("b", 2.0), ("c", 1.0))
    ]
    labels = torch.zeros(10, dtype=torch.int64)
    assert sensitivity.fall_back(scan, costs, labels, budget, most) == left  # type: ignore[arg-type]


def test_layers_left_in_float_are_float_in_the_graph_and_after_a_reload(base: Base, tmp_path: Path) -> None:
    graph = prepared(network(base), ("2",))
    graph.apply(lambda module: module.disable_observer() if hasattr(module, "disable_observer") else None)
    checkpoint.save(Checkpoint(base, graph), tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "model.json").read_text())["surgery"][-1]["float_layers"] == ["2"]
    again = checkpoint.load(tmp_path / "kept", batch=1).model
    single = convert(again)  # type: ignore[arg-type]
    stored = [tuple(t.shape) for t in single.state_dict().values() if t.dtype == torch.int8]
    assert stored == [(4, 1, 3, 3), (2, 64)]
    with torch.no_grad():
        wanted, found = graph(IMAGES[:8]), torch.cat([single(image[None]) for image in IMAGES[:8]])
    assert torch.allclose(wanted, found, atol=float(wanted.abs().max()) / 50)


def test_the_fall_back_of_the_worst_layer_mends_the_answers(base: Base) -> None:
    model = network(base)
    with torch.no_grad():
        plain = model(IMAGES)
        whole, mended = prepared(model)(IMAGES), prepared(model, ("2", "5"))(IMAGES)
        scan = sensitivity.Scan(prepared(model), [IMAGES])
    assert statistics.divergence(mended, plain) < 0.1 * statistics.divergence(whole, plain)
    # What the scan foretells is what a graph prepared so computes; the tensor between both layers takes leaving both.
    assert torch.allclose(scan.answers(("0",)), mended, atol=1e-5)
    assert torch.equal(scan.answers(("0", "5")), scan.answers(None)) is False
    assert statistics.divergence(scan.answers(("0", "5")), plain) > 0.5 * statistics.divergence(whole, plain)


class Joined(nn.Module):
    """Two convolutions side by side, the second thousands of times as large, joined and read by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(5, 2, 6)
        with torch.no_grad():
            self.large.weight.abs_().mul_(10_000)
            self.last.weight[:, 4] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.small(x).relu(), self.large(x)], 1)).flatten(1)  # type: ignore[no-any-return]


def test_what_only_moves_a_float_layers_values_is_float_too() -> None:
    """Else the concatenation would round the small values on the grid of the large ones, whatever is left in float."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Joined().eval()
    with torch.no_grad():
        wanted = model(IMAGES)

    def error(left: tuple[str, ...]) -> float:
        with torch.no_grad():
            return float((convert(prepared(model, left))(IMAGES) - wanted).norm() / wanted.norm())

    graph = export_graph(model, (1, 8, 8), batch=None)
    assert graph_layers.nodes_of(graph, ("small",)) == {"conv2d", "relu", "cat"}
    assert graph_layers.nodes_of(graph, ("last",)) == {"conv2d_2", "flatten"}
    assert error(()) > 0.1 and error(("small", "last")) < 0.02


def test_the_picture_marks_what_is_left_in_float() -> None:
    costs = [{"layer": n, "operation": "conv2d", "kl": k, "agreement": 1.0} for n, k in (("a", 2.0), ("b", 1.0))]
    (bar,) = quantization.draw_sensitivity(costs, ["a"])["data"]
    assert (bar["y"], bar["x"]) == (["b", "a"], [1.0, 2.0])
    assert len(set(bar["marker"]["color"])) == 2


def test_a_fall_back_needs_a_measurement() -> None:
    with pytest.raises(RequestError, match="sensitivity"):
        Quantize(sensitivity=0, max_float_layers=2)
    assert SimpleNamespace(how=Quantize(sensitivity=0)).how.max_float_layers == 0
