"""Operators written as others compute the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.targets._rewrite import HARD_SIGMOID, attention_as_products, rewrite_program, silu_as_product

_aten = torch.ops.aten


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(4 * x) + F.silu(x)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


class Heads(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x + 1, **self.options)  # type: ignore[arg-type]


def test_gates_compute_what_they_did() -> None:
    x = torch.linspace(-3, 3, 101)
    before = torch.export.export(Gate(), (x,))
    after = rewrite_program(before, {**HARD_SIGMOID, _aten.silu.default: silu_as_product})
    targets = [node.target for node in after.graph.nodes]
    assert _aten.hardsigmoid.default not in targets and _aten.silu.default not in targets
    assert _aten.silu.default in [node.target for node in before.graph.nodes]  # the program itself is left alone
    assert torch.allclose(after.module()(x), before.module()(x), atol=1e-6)


def test_what_a_program_returns_keeps_its_name() -> None:
    x = torch.linspace(-5, 5, 11)
    after = rewrite_program(torch.export.export(Last(), (x,)), HARD_SIGMOID)
    assert torch.allclose(after.module()(x), F.hardsigmoid(x), atol=1e-6)
    assert torch.allclose(torch.export.export(after.module(), (x,)).module()(x), F.hardsigmoid(x), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_attention_is_two_products_and_a_softmax(options: dict[str, float]) -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    before = torch.export.export(Heads(**options), (x,))
    after = rewrite_program(before, {_aten.scaled_dot_product_attention.default: attention_as_products})
    assert [node.target for node in after.graph.nodes].count(_aten.matmul.default) == 2
    assert torch.allclose(after.module()(x), before.module()(x), atol=1e-5)


def test_causal_attention_stays_as_it_is() -> None:
    x = torch.randn(1, 2, 4, 8)
    program = torch.export.export(Heads(is_causal=True), (x,))
    after = rewrite_program(program, {_aten.scaled_dot_product_attention.default: attention_as_products})
    assert _aten.scaled_dot_product_attention.default in [node.target for node in after.graph.nodes]
