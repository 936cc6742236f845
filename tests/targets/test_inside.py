"""What is read out of a running file stands under the right names: values that backends move, rename or share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgewise import library_noise, targets
from edgewise.network import captured
from edgewise.studies.architectures.network import capture_network
from edgewise.verify import layerwise

SHAPE = (3, 8, 6)


class Permuted(nn.Module):
    """ConvNeXt's block: a value read twice, a norm and linear layers over the last dimension, a learned scale, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.norm, self.inner, self.outer = nn.LayerNorm(5), nn.Linear(5, 7), nn.Linear(7, 5)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 5).reshape(5, 1, 1))
        self.head = nn.Conv2d(5, 4, (8, 6))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        inner = self.norm(self.depthwise(stem).permute(0, 2, 3, 1))
        outer = self.outer(nn.functional.gelu(self.inner(inner))).permute(0, 3, 1, 2)
        return torch.flatten(self.head(stem + self.scale * outer), 1)


class Normed(nn.Module):
    """A norm whose result is moved about before it is quantized: the quantization may be moved in front of that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 5, 1), nn.LayerNorm(5), nn.Conv2d(5, 4, (8, 6))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.flatten(self.head(normed), 1)


class Padded(nn.Module):
    """A pooling that rounds up: its padding is a step of its own, on integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(self.stem(x).relu(), 3, 2, ceil_mode=True)
        return self.head(pooled.mean((2, 3)))


class Headed(nn.Module):
    """Linear layers around a tanh: Core ML's tools give a linear layer a name of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 1), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(self.stem(x)).mean((2, 3)))))


MUST_HOLD = {Permuted: "layer_norm", Normed: "permute", Padded: "pool", Headed: "tanh"}
"""Network -> an operation whose value, or whose quantized value, is among those looked at in every target."""


@pytest.mark.parametrize("name", ["onnx", "xnnpack", "coreml", "litert"])
@pytest.mark.parametrize("network", MUST_HOLD)
def test_every_value_that_a_file_lets_out_is_the_graphs_own(
    network: type[nn.Module], name: str, tmp_path: Path
) -> None:
    try:
        target = targets.get(name)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    torch.manual_seed(0)
    images = torch.randn(4, *SHAPE)
    with torch.no_grad(), library_noise.quiet_capture():
        graph = captured.export_graph(network().eval(), SHAPE, batch=1)
        observed = prepare_pt2e(graph, target.quantizer(target.grids[0]))
        for image in images:
            observed(image[None])
        program = capture_network(captured.convert(observed), SHAPE)
    path = tmp_path / f"net{target.suffix}"
    artifact = target.export(program, path, targets.USUAL)
    assert target.inside is not None
    layers = layerwise.compare(target.inside(path, program, images), images, artifact.precision, {})
    assert layerwise.first_divergent(layers) is None, layers
    assert any(MUST_HOLD[network] in f"{layer.operation} {layer.node}" for layer in layers), layers
    assert len({layer.node for layer in layers}) >= 4
