"""Core ML's MIL operators: small modules converted, read back, evaluated, against PyTorch's own run of the module."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("coremltools")

from edgewise.targets import USUAL, get
from edgewise.targets.coreml._coremltools import load_coremltools
from edgewise.targets.coreml._mil import read_program

TARGET = get("coreml")

Function = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Normed(nn.Module):
    """A batch norm that no convolution absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(x))


def channelwise_prelu() -> nn.Module:
    module = nn.PReLU(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.1, 0.3, -0.5]))
    return module


def attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    return functional.scaled_dot_product_attention(tokens, tokens * 2, tokens + 1)


# name: (module, shape, MIL operators that must be in the file)
CASES: dict[str, tuple[nn.Module, tuple[int, ...], set[str]]] = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 9, 9), {"conv"}),
    "conv, uneven kernel, dilated": (nn.Conv2d(4, 6, (3, 5), padding=(2, 1), dilation=2), (1, 4, 12, 12), {"conv"}),
    "conv, depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (1, 4, 8, 8), {"conv"}),
    "conv, one axis": (nn.Conv1d(4, 6, 3, padding=1), (1, 4, 10), {"conv"}),
    "conv_transpose": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (1, 4, 5, 5), {"conv_transpose"}),
    "conv_transpose, output padding": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (1, 4, 5, 5),
        {"conv_transpose"},
    ),
    "conv_transpose, grouped": (nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2), (1, 4, 5, 6), {"conv_transpose"}),
    "linear": (nn.Linear(7, 5), (1, 7), {"linear"}),
    "matmul": (Apply(lambda x: x @ x.transpose(2, 3)), (1, 2, 5, 3), {"matmul"}),
    "attention": (Apply(attention), (1, 4, 3, 3), {"matmul", "softmax"}),
    "batch_norm": (Normed(), (1, 4, 5, 5), {"batch_norm"}),
    "layer_norm": (nn.LayerNorm([6]), (1, 5, 6), {"layer_norm"}),
    "group_norm": (nn.GroupNorm(2, 4), (1, 4, 5, 5), set()),
    "avg_pool": (nn.AvgPool2d(3, 2, padding=1), (1, 2, 9, 9), {"avg_pool"}),
    "avg_pool, padding not counted": (
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        (1, 2, 9, 9),
        {"avg_pool"},
    ),
    "avg_pool, ceiling": (nn.AvgPool2d(3, 2, ceil_mode=True), (1, 2, 8, 8), {"avg_pool"}),
    "max_pool": (nn.MaxPool2d(3, 2, padding=1), (1, 2, 9, 9), {"max_pool"}),
    "max_pool, ceiling": (nn.MaxPool2d(3, 2, ceil_mode=True), (1, 2, 8, 8), {"max_pool"}),
    "max_pool, stride left out": (Apply(lambda x: functional.max_pool2d(x, 2)), (1, 2, 8, 8), {"max_pool"}),
    "adaptive pooling to 5": (Apply(lambda x: functional.adaptive_avg_pool2d(x, 5)), (1, 2, 6, 6), {"reduce_mean"}),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(1), (1, 2, 6, 6), {"reduce_mean"}),
    "reduce_mean": (Apply(lambda x: x.mean((2, 3))), (1, 2, 6, 6), {"reduce_mean"}),
    "reduce_sum, max": (Apply(lambda x: x.sum(1) + x.amax(1)), (1, 2, 6, 6), {"reduce_sum", "reduce_max"}),
    "add, sub, mul": (Apply(lambda x: (x + 1.5) * x - x.flip(1)), (1, 2, 4, 4), {"add", "sub", "mul"}),
    "real_div": (Apply(lambda x: x / (x.abs() + 1)), (1, 2, 4, 4), {"real_div", "abs"}),
    "relu": (nn.ReLU(), (1, 20), {"relu"}),
    "relu6": (Apply(lambda x: functional.relu6(x * 4)), (1, 20), {"relu6"}),
    "clip": (nn.Hardtanh(-0.5, 0.75), (1, 20), {"clip"}),
    "sigmoid": (nn.Sigmoid(), (1, 20), {"sigmoid"}),
    "sigmoid_hard": (Apply(lambda x: functional.hardsigmoid(x * 3)), (1, 20), {"sigmoid_hard"}),
    "hardswish": (Apply(lambda x: functional.hardswish(x * 3)), (1, 20), set()),
    "silu": (nn.SiLU(), (1, 20), {"silu"}),
    "gelu": (nn.GELU(), (1, 20), {"gelu"}),
    "gelu, tanh": (nn.GELU(approximate="tanh"), (1, 20), {"gelu"}),
    "leaky_relu": (nn.LeakyReLU(0.2), (1, 20), {"leaky_relu"}),
    "elu": (nn.ELU(0.7), (1, 20), {"elu"}),
    "prelu": (channelwise_prelu(), (1, 3, 4, 4), {"prelu"}),
    "softplus": (nn.Softplus(), (1, 20), {"softplus"}),
    "softmax": (nn.Softmax(dim=1), (1, 6, 3), {"softmax"}),
    "tanh": (nn.Tanh(), (1, 20), {"tanh"}),
    "erf": (Apply(torch.erf), (1, 20), {"erf"}),
    "exp": (Apply(torch.exp), (1, 20), {"exp"}),
    "sqrt, rsqrt": (Apply(lambda x: (x * x + 1).sqrt() + (x * x + 2).rsqrt()), (1, 20), {"sqrt", "rsqrt"}),
    "pow": (Apply(lambda x: (x.abs() + 1) ** 1.5), (1, 20), {"pow"}),
    "maximum, minimum": (
        Apply(lambda x: torch.maximum(x, -x) + torch.minimum(x, x.flip(1))),
        (1, 20),
        {"maximum", "minimum"},
    ),
    "where": (Apply(lambda x: torch.where(x > 0, x, x * 3)), (1, 20), {"select", "greater"}),
    "reshape, transpose": (
        Apply(lambda x: x.reshape(1, 2, 2, 3, 3).transpose(1, 2).reshape(1, 4, 3, 3)),
        (1, 4, 3, 3),
        {"reshape", "transpose"},
    ),
    "concat": (Apply(lambda x: torch.cat([x, x * 2], 1)), (1, 2, 3, 3), {"concat"}),
    "stack": (Apply(lambda x: torch.stack([x, x * 2], 1)), (1, 2, 3), {"stack"}),
    "split": (Apply(lambda x: torch.mul(*x.chunk(2, 1))), (1, 4, 3, 3), {"split"}),
    "slice_by_index": (Apply(lambda x: x[:, 1:3, ::2, 1:]), (1, 4, 6, 6), {"slice_by_index"}),
    "pad": (Apply(lambda x: functional.pad(x, (1, 2, 0, 3), value=0.5)), (1, 2, 4, 4), {"pad"}),
    "pad, reflected": (Apply(lambda x: functional.pad(x, (1, 2, 2, 1), mode="reflect")), (1, 2, 4, 4), {"pad"}),
    "pad, of channels": (Apply(lambda x: functional.pad(x, (0, 0, 0, 0, 2, 1))), (1, 2, 4, 4), {"pad"}),
    "expand_dims, squeeze": (
        Apply(lambda x: x[:, :, None].sigmoid().squeeze(2)),
        (1, 2, 4),
        {"expand_dims", "squeeze"},
    ),
    "gather": (Apply(lambda x: x.index_select(1, torch.tensor([2, 0, 2]))), (1, 4, 3), {"gather"}),
    "tile": (Apply(lambda x: x.repeat(1, 3, 2)), (1, 2, 3), {"tile"}),
    "upsample, nearest": (nn.Upsample(scale_factor=2, mode="nearest"), (1, 2, 4, 4), {"upsample_nearest_neighbor"}),
    "upsample, bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 4, 4), {"upsample_bilinear"}),
    "upsample, corners": (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        (1, 2, 4, 4),
        {"upsample_bilinear"},
    ),
    "pixel_shuffle": (nn.PixelShuffle(2), (1, 8, 3, 3), {"pixel_shuffle"}),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), (1, 2, 6, 6), set()),
    "roll": (Apply(lambda x: x.roll(1, 2)), (1, 2, 5, 5), {"gather"}),
    "cumsum": (Apply(lambda x: x.cumsum(2)), (1, 2, 5, 5), {"cumsum"}),
    "topk": (Apply(lambda x: x.topk(3, 1)[0]), (1, 8, 2), {"topk"}),
    "argmax": (Apply(lambda x: x.argmax(1).float()), (1, 8, 2), {"reduce_argmax"}),
    "normalize": (Apply(functional.normalize), (1, 8, 2), {"reduce_l2_norm"}),
    "instance_norm": (nn.InstanceNorm2d(3), (1, 3, 5, 5), {"instance_norm"}),
    "clip, open below": (Apply(lambda x: x.clamp(max=0.5)), (1, 20), {"clip"}),
    "band_part": (Apply(torch.tril), (1, 2, 5, 5), {"band_part"}),
}


@pytest.fixture(scope="module", autouse=True)
def imports_out_of_the_collectors_way() -> Iterator[None]:
    """Every conversion ends in a full collection, half its time over coremltools' own modules."""
    load_coremltools()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", CASES)
def test_an_operator_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    module, shape, operators = CASES[name]
    torch.manual_seed(0)
    images = torch.randn(3, *shape[1:])
    program = torch.export.export(module.eval(), (images[:1],))
    artifact = TARGET.export(program, tmp_path / "net.mlpackage", USUAL)
    assert operators <= {operation.type for operation in read_program(artifact.path).operations}
    assert TARGET.reference is not None
    found = TARGET.reference(artifact.path)(images)
    with torch.no_grad():
        wanted = torch.cat([module(image[None]) for image in images])
    # One float16 rounding of operands and result is 2^-11 of their size; sums of a few dozen terms add up to this.
    torch.testing.assert_close(found, wanted, atol=4e-3, rtol=4e-3)
