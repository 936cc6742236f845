"""A large depthwise kernel in parts: the same numbers, and kernels that the delegate has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.targets._rewrite import rewrite_program
from edgewise.targets.litert._constants import fold_constants
from edgewise.targets.litert._depthwise import split_depthwise

_aten = torch.ops.aten
RULES = dict.fromkeys((_aten.conv2d.default, _aten.conv2d.padding), split_depthwise)


def images() -> Tensor:
    return torch.randn(1, 4, 13, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def depthwise(kernel: Any, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(4, options.pop("outputs", 4), kernel, groups=4, **options).double().eval()


def split(network: nn.Module) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """The network without its large kernels, and the shapes of the kernels that it has then."""
    program = rewrite_program(torch.export.export(network, (images(),)), RULES)
    kernels = [
        node.args[1].meta["val"].shape[2:] for node in program.graph.nodes if node.target is _aten.conv2d.default
    ]
    return program.module(check_guards=False), [tuple(shape) for shape in kernels]


@pytest.mark.parametrize(
    ("network", "kernels"),
    [
        (depthwise(7, padding=3), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, padding=3, bias=False), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(6, padding="same"), [(4, 6), (2, 6)]),
        (depthwise(7, padding="valid"), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(9, padding=4, stride=2), [(2, 9)] * 4 + [(1, 9)]),
        (depthwise(7, padding=6, dilation=2), [(3, 7), (3, 7), (1, 7)]),
        (depthwise((6, 5), padding=(1, 2), stride=(2, 1), dilation=(1, 2)), [(5, 5), (1, 5)]),
        (depthwise((1, 31), padding=(0, 15)), [(1, 16), (1, 15)]),
        (depthwise((31, 1), padding=(15, 0)), [(25, 1), (6, 1)]),
        (depthwise(7, padding=3, outputs=8), [(3, 7), (3, 7), (1, 7)]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, on running the whole
def test_the_parts_give_what_the_whole_does(network: nn.Module, kernels: list[tuple[int, ...]]) -> None:
    parts, found = split(network)
    assert found == kernels and all(height * width <= 25 for height, width in found)
    assert torch.allclose(parts(images()), network(images()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "network",
    [
        depthwise(5, padding=2),
        nn.Conv2d(4, 4, 7, groups=2).double(),
        nn.Conv2d(4, 4, 7).double(),
        nn.Sequential(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 8, 7)).double(),
    ],
)
def test_other_convolutions_stay_whole(network: nn.Module) -> None:
    _, kernels = split(network)
    assert len(kernels) == sum(isinstance(module, nn.Conv2d) for module in network.modules())


def test_the_parts_of_integer_weights_are_constants() -> None:
    """The converter has no kernel for a slice of quantized weights."""
    pytest.importorskip("torchao.quantization.pt2e")
    pair = torch.ops.quantized_decomposed

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.arange(-98, 98, dtype=torch.int8).view(4, 1, 7, 7))
            self.register_buffer("scale", torch.tensor([0.5, 0.25, 1.0, 2.0]))
            self.register_buffer("zero", torch.zeros(4, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            weight = pair.dequantize_per_channel(self.weight, self.scale, self.zero, 0, -127, 127, torch.int8)
            return nn.functional.conv2d(x, weight, padding=3, groups=4)

    image = images().float()
    program = rewrite_program(torch.export.export(Quantized(), (image,)), RULES)
    module = program.module(check_guards=False)
    fold_constants(module)  # type: ignore[arg-type]
    assert not any("quantize" in str(node.target) for node in module.graph.nodes)  # type: ignore[union-attr]
    assert torch.allclose(module(image), Quantized()(image), rtol=1e-5, atol=1e-3)


def test_the_delegate_takes_the_whole_file_and_it_answers_as_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="LiteRT's converter is not installed")
    pytest.importorskip("ai_edge_litert", reason="LiteRT's runtime is not installed")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgewise.targets import USUAL
    from edgewise.targets._int8 import Int8Quantizer
    from edgewise.targets.litert import TARGET

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    shown = torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    prepared = prepare_pt2e(
        torch.export.export(network.eval(), (shown[:1],)).module(check_guards=False), Int8Quantizer(TARGET.grids[0])
    )
    for image in shown:
        prepared(image[None])
    quantized = convert_pt2e(prepared)
    artifact = TARGET.export(torch.export.export(quantized, (shown[:1],)), tmp_path / "net.tflite", USUAL)
    assert artifact.undelegated == () and artifact.facts["undelegated"] == {}
    assert artifact.facts["float_operators"] == {"ADD": 2, "DEPTHWISE_CONV_2D": 3}
    steps = [float(n.args[1]) for n in quantized.graph.nodes if ".quantize_per_tensor" in str(n.target)]
    assert TARGET.load is not None
    with torch.no_grad():
        expected = torch.cat([quantized(image[None]) for image in shown])
    apart = (TARGET.load(artifact.path, 1)(shown) - expected).abs() / steps[-1]
    assert apart.max() < 2.01 and apart.mean() < 0.1
