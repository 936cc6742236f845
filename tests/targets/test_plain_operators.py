"""Operators that converters lack or lower wrongly: each file answers what the network answers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgewise.files.open import open_file
from edgewise.targets import USUAL, Grid, MissingBackend, get
from edgewise.targets._plain_operators import PLAIN, XNNPACK
from edgewise.targets._rewrite import rewrite_program
from edgewise.targets.litert._operators import PLAIN as LITERT_RULES

Function = Callable[[Tensor], Tensor]

OPERATORS: dict[str, Function] = {
    "clip of a clip": lambda x: F.hardtanh(F.relu(x)),
    "clips in place": lambda x: F.hardtanh_(F.relu_(x), 0.0, 0.5),
    "clips with nothing in common": lambda x: x + x.clamp(-2, -0.5).clamp(0.1, 1),
    "lower bound above zero": lambda x: x.clamp(min=0.1),
    "generalized mean": lambda x: F.relu(x).clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True).pow(1 / 3),
    "bounds of two types": lambda x: x.clamp(-1, 0.5),
    "rrelu": F.rrelu,
    "variance and mean": lambda x: (x - torch.var_mean(x, 1, keepdim=True)[1]) * torch.var_mean(x, 1, keepdim=True)[0],
    "variance with a correction": lambda x: x * torch.var_mean(x, (2, 3), correction=0, keepdim=True)[0],
    "everything's variance": lambda x: x / torch.var_mean(x)[0] + torch.var_mean(x)[1],
    "lerp": lambda x: torch.lerp(x, -x, 0.3),
    "log sigmoid": F.logsigmoid,
    "attention of three dimensions": lambda x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3).view_as(x),
    "attention of five": lambda x: F.scaled_dot_product_attention(*[x.view(len(x), 2, 2, 1, 8, 8)] * 3).view_as(x),
    "masked attention of three": lambda x: F.scaled_dot_product_attention(
        *[x.flatten(2)] * 3, attn_mask=torch.ones(4, 4).tril() > 0
    ).view_as(x),
    "pooling without a stride": lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2),
    "padded pooling without a stride": lambda x: torch.max_pool2d(x, [3, 2], padding=1),
    "hard tanh with its own bounds": torch.ops.aten.hardtanh,
    "another name": lambda x: torch.ops.aten.alias(x) * 2,
}
POOLS: dict[str, Function] = {
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    "global max": lambda x: x * F.adaptive_max_pool2d(x, 1),
}
LITERT: dict[str, Function] = {
    **{name: POOLS[name] for name in ("adaptive max", "global max")},
    "direction": lambda x: F.normalize(x, dim=1),
    "distance to the mean, by its length": lambda x: (x - x.mean()) / torch.linalg.vector_norm(x),
    "hard shrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0) + F.threshold(x, 0.1, -0.5),
    "coordinates": lambda x: torch.cat(
        [x[:, :2], torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(len(x), 2, 8, 8)], 1
    ),
    "one channel four times": lambda x: F.conv2d(x[:, :1].expand(-1, 4, -1, -1), torch.ones(4, 4, 3, 3)),
    "twice the channels": lambda x: x.repeat(1, 2, 1, 1)[:, 2:6],
    "sum of the sizes": lambda x: x / torch.linalg.vector_norm(x, 1, [1, 2], True),
    "expanded summand": lambda x: (
        x.mean(1, keepdim=True).expand_as(x) + x.mean((2, 3), keepdim=True).expand(x.shape) * x
    ),
}
COREML: dict[str, Function] = {
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "celu": F.celu,
    "rms norm": lambda x: F.rms_norm(x, x.shape[1:]),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "quarter turn": lambda x: torch.rot90(x, 1, (2, 3)),
    "difference": lambda x: x.diff(dim=3),
    "product and sum": lambda x: torch.addcmul(x, x, x, value=0.1),
    "ones": lambda x: x + torch.ones_like(x) * torch.arange(8.0),
    "arcus tangent": torch.atan,
}


class Network(nn.Module):
    """A convolution, the operator, and a linear layer behind the mean."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function(self.stem(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("name", sorted({**OPERATORS, **POOLS}))
def test_the_rewritten_program_computes_the_same(name: str) -> None:
    network, images = _network({**OPERATORS, **POOLS}[name])
    program = torch.export.export(network, (images[:1],))
    plain = rewrite_program(rewrite_program(program, PLAIN), XNNPACK)
    assert _calls(plain) != _calls(program)
    assert torch.allclose(plain.module()(images[:1]), program.module()(images[:1]), atol=1e-5)


@pytest.mark.parametrize("name", LITERT)
def test_the_program_rewritten_for_litert_computes_the_same(name: str) -> None:
    network, images = _network(LITERT[name])
    program = torch.export.export(network, (images[:1],))
    plain = rewrite_program(program, LITERT_RULES)
    assert _calls(plain) != _calls(program)
    assert torch.allclose(plain.module()(images[:1]), program.module()(images[:1]), atol=1e-5)


@pytest.mark.parametrize(("name", "copies"), [("direction", 0), ("expanded summand", 0), ("coordinates", 3)])
def test_an_expansion_that_broadcasting_does_is_no_copy(name: str, copies: int) -> None:
    network, images = _network(LITERT[name])
    plain = rewrite_program(torch.export.export(network, (images[:1],)), LITERT_RULES)
    targets = [str(target) for target, _ in _calls(plain)]
    assert targets.count("aten.cat.default") == copies and not any("expand" in target for target in targets)


@pytest.mark.parametrize("target", ["onnx", "xnnpack", "litert"])
@pytest.mark.parametrize("name", sorted({**OPERATORS, **POOLS, **LITERT}))
def test_the_file_answers_as_the_network(name: str, target: str, tmp_path: Path) -> None:
    _compare_file(target, *_network({**OPERATORS, **POOLS, **LITERT}[name]), tmp_path, 1e-4)


def test_a_core_ml_file_answers_as_a_network_of_them_all(tmp_path: Path) -> None:
    functions = {**OPERATORS, **POOLS, **COREML}.values()
    network, images = _network(
        lambda x: torch.stack([function(x).mean((2, 3), keepdim=True) for function in functions]).mean(0)
    )
    _compare_file("coreml", network, images, tmp_path, 0.02)


@pytest.mark.parametrize(
    "function", [torch.mul, torch.add, lambda x, w: torch.sigmoid(w) * x], ids=["mul", "add", "gate"]
)
def test_a_parameter_of_one_number_is_what_it_is_in_a_core_ml_file_of_integers(
    function: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.number = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return function(F.relu(self.stem(x)), self.number).mean((2, 3))

    pytest.importorskip("coremltools")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    images, coreml = torch.randn(2, 3, 8, 8), get("coreml")
    prepared = prepare_pt2e(
        torch.export.export(Scaled().eval(), (images[:1],)).module(check_guards=False),
        coreml.quantizer(Grid(weight_bits=8)),
    )
    prepared(images)
    network = convert_pt2e(prepared)
    coreml.export(torch.export.export(network, (images[:1],)), tmp_path / "net.mlpackage", USUAL)
    found = torch.cat([open_file(coreml, tmp_path / "net.mlpackage").answer(image[None]) for image in images])
    expected = torch.cat([network(image[None]) for image in images])
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_max_pool2d(x, 3),
        lambda x: F.avg_pool3d(x.unsqueeze(1), (3, 1, 1), (2, 1, 1)).squeeze(1).expand(-1, 4, -1, -1),
        lambda x: F.relu(x) + x.clamp(-1.0, 1.0),
    ],
    ids=["unequal windows", "a longer stride", "two clips of one tensor"],
)
def test_what_has_no_such_form_stays(function: Function) -> None:
    network, images = _network(function)
    program = torch.export.export(network, (images[:1],))
    assert _calls(rewrite_program(rewrite_program(program, PLAIN), XNNPACK)) == _calls(program)


def _calls(program: ExportedProgram) -> list[tuple[object, str]]:
    """Each operator with its arguments, without the reads of one result of several, which go where they are unused."""
    return [
        (node.target, str(node.args))
        for node in program.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]


def _compare_file(target: str, network: nn.Module, images: Tensor, folder: Path, tolerance: float) -> None:
    try:
        get(target)
    except MissingBackend as error:
        pytest.skip(str(error))
    path = folder / f"x{get(target).suffix}"
    get(target).export(torch.export.export(network, (images[:1],)), path, USUAL)
    with torch.no_grad():
        wanted = torch.cat([network(image[None]) for image in images])
    answers = torch.cat([open_file(get(target), path).answer(image[None]) for image in images])
    assert torch.allclose(answers, wanted, atol=tolerance)


def _network(function: Function) -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    return Network(function).eval(), torch.randn(3, 3, 8, 8)
