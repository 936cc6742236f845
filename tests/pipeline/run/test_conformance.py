"""What every architecture must keep on every target: over both registries, reduced networks.

The part that is no test of its own elsewhere: settings survive, observers freeze, any batch size in training and one in
the file, and where graph and file differ, the layer is named.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from edgewise import library_noise, models, targets
from edgewise.errors import StageError
from edgewise.network.captured import Prepare
from edgewise.stages import quantize
from edgewise.stages.quantize.graph_settings import check_unchanged, read_constants
from edgewise.studies.architectures.network import (
    Prepared,
    answer_images,
    calibrate_network,
    capture_network,
    compare_logits,
    prepare_network,
)
from edgewise.verify import layerwise

QUICK = ("tiny_resnet", "mobilenet_v2")
QUICK_FILES = {("tiny_resnet", "onnx")}
GRID = targets.Grid(weight_bits=7)


def architectures() -> list[object]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in models.names()]


def files() -> list[object]:
    pairs = [(name, target) for name in models.names() for target in targets.names()]
    return [pytest.param(*pair, marks=[] if pair in QUICK_FILES else [pytest.mark.slow]) for pair in pairs]


@cache
def small(name: str) -> Prepared:
    return prepare_network(models.get(name), small=True, images=4)


@pytest.mark.parametrize("name", architectures())
def test_a_prepared_graph_keeps_its_settings_and_takes_any_batch(name: str) -> None:
    prepared = small(name)
    if "quantize" in prepared.spec.cannot:
        pytest.skip(f"declared: {prepared.spec.cannot['quantize']}")
    graph = Prepare(GRID.to_json(), prepared.shape).capture(prepared.folded)
    assert "batch_norm" not in read_constants(graph)
    eps = [module.eps for module in prepared.folded.modules() if isinstance(module, nn.LayerNorm)]
    assert [found[0] for found in read_constants(graph).get("layer_norm", [])] == pytest.approx(eps)
    images = torch.cat(prepared.normalised("train"))
    with torch.no_grad():
        assert graph(torch.cat(prepared.calibration)).shape[0] == len(prepared.calibration)
        quantize.freeze_ranges(graph)
        fakes = [module for module in graph.modules() if isinstance(module, FakeQuantizeBase)]
        assert fakes and all(int(fake.observer_enabled[0]) == 0 for fake in fakes)
        # Weights are rounded on the grid of their present magnitude; what is frozen is the activations' range.
        frozen = {id(fake): fake.scale.clone() for fake in fakes if fake.scale.numel() == 1}
        for batch in (1, 2, 3):
            assert graph(10 * images[:1].expand(batch, -1, -1, -1)).shape[0] == batch
    assert all(torch.equal(frozen[id(fake)], fake.scale) for fake in fakes if id(fake) in frozen)


@pytest.mark.parametrize(("name", "target"), files())
def test_every_layer_of_the_file_follows_from_its_inputs(name: str, target: str, tmp_path: Path) -> None:
    try:
        chosen = targets.get(target)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    prepared = small(name)
    if chosen.inside is None or {target, "quantize"} & prepared.spec.cannot.keys():
        pytest.skip("lets nothing out, or is declared impossible")
    graph = calibrate_network(prepared, chosen.quantizer(chosen.grids[0]))
    program = capture_network(graph, prepared.shape)
    same = compare_logits(
        answer_images(program.module(check_guards=False), prepared.images), answer_images(graph, prepared.images)
    )
    assert same.error < 1e-4, "captured again, the converted graph is the same function"
    (given,) = program.example_inputs[0]
    assert given.shape[0] == 1
    path = tmp_path / f"net{chosen.suffix}"
    artifact = chosen.export(program, path, targets.USUAL)
    images = torch.cat(prepared.images)
    layers = layerwise.compare(chosen.inside(path, program, images), images, artifact.precision, {})
    first = layerwise.first_divergent(layers)
    assert layers and first is None, f"{name} on {target} first diverges at {first}"


class Regularised(nn.Module):
    """A batch norm and a dropout with settings of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=1e-3, momentum=0.3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.norm(self.conv(x)))
        return out


def test_the_guard_finds_what_torchao_overwrites() -> None:
    """Capture, switch to training and back: torchao 0.18 leaves p 0.5, eps 1e-5, momentum 0.1; the guard says so."""
    example = torch.randn(2, 1, 5, 5)
    with library_noise.quiet_capture():
        graph = torch.export.export(Regularised().train(), (example,)).module(check_guards=False)
    before = read_constants(graph)  # type: ignore[arg-type]
    assert before["dropout"] == [(0.2,)] and before["batch_norm"] == [(0.3, 1e-3)]
    check_unchanged(graph, before)  # type: ignore[arg-type]
    with library_noise.quiet_capture():
        move_exported_model_to_eval(graph)
        move_exported_model_to_train(graph)
    with pytest.raises(StageError, match=r"batch_norm momentum, eps.*dropout p: \[\(0\.2,\)\] became \[\(0\.5,\)\]"):
        check_unchanged(graph, before)  # type: ignore[arg-type]


def test_constants_are_plain_json() -> None:
    example = torch.randn(2, 1, 5, 5)
    with library_noise.quiet_capture():
        graph = torch.export.export(Regularised().eval(), (example,)).module(check_guards=False)
    assert json.loads(json.dumps(read_constants(graph)))["batch_norm"] == [[0.3, 1e-3]]  # type: ignore[arg-type]
