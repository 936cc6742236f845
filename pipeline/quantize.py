"""Quantization-aware training on a captured graph, once per quantization grid.

The network is captured with its batch norms already folded and dropout off, gets fake quantizers by the targets' one
int8 quantizer, and is trained on: ranges are observed first, then frozen. What it learned is tensors; the graph is
rebuilt from the float network and the grid.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from pipeline import halves, surgery
from pipeline.errors import StageError
from pipeline.image_sizes import open_sides
from pipeline.images import normalise
from pipeline.recipe import Context, in_range
from pipeline.training import Augment, Training, fit
from targets import Grid, Sizes


@dataclass(frozen=True)
class Prepare:
    """Surgery that captures a network as a graph and puts fake quantizers into it."""

    grid: Mapping[str, Any]
    """The grid's fields."""
    input_shape: tuple[int, int, int] | list[int]

    def capture(self, model: nn.Module, batch: int | None = None, sizes: Sizes | None = None) -> GraphModule:
        """The prepared graph. ``batch`` None: any batch size; otherwise that size alone, as a file wants it.

        ``sizes``: the image sizes it must serve; None: the one it was trained at.
        """
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        quantizer = _quantizer(Grid.from_json(self.grid))
        with quiet_capture():
            prepared = prepare_qat_pt2e(export_graph(model, tuple(self.input_shape), batch, sizes), quantizer)
        assert isinstance(prepared, GraphModule)
        for operation in (*surgery.history(model), self):
            surgery.record(prepared, operation)
        return prepared


def _quantizer(grid: Grid) -> Any:
    from targets._int8 import Int8Quantizer

    return Int8Quantizer(grid, operators=grid.operators, qat=True)


def export_graph(
    model: nn.Module, input_shape: tuple[int, ...], batch: int | None, sizes: Sizes | None = None
) -> GraphModule:
    """A captured graph of ``model`` in evaluation mode, on inputs [batch, *input_shape]; ``batch`` None: any.

    ``sizes``: the image sizes the graph serves; None: that of ``input_shape`` alone. What only training uses is not in
    it: no dropout, no stochastic depth, and no side classifiers with their weights.
    """
    model = copy.deepcopy(model).eval()
    example = torch.zeros(batch or 2, *input_shape, device=next(model.parameters()).device)
    open_ = open_sides(sizes, (2, 3)) | ({} if batch else {0: torch.export.Dim("batch", min=1, max=65_536)})
    with quiet_capture():
        program = torch.export.export(model, (example,), dynamic_shapes=(open_,) if open_ else None)
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    graph.graph.eliminate_dead_code()  # also drops the reads of weights that nothing uses
    graph.delete_all_unused_submodules()
    return graph


def convert(prepared: GraphModule) -> GraphModule:
    """A prepared graph as integers: quantize/dequantize pairs, weights rounded to int8. The input is left alone."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with quiet_capture():
        converted: GraphModule = convert_pt2e(copy.deepcopy(prepared))
    halves.round_converted(converted)
    return converted


class quiet_capture(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Hides notes of the capturing libraries about their own future versions."""

    def __enter__(self) -> None:
        super().__enter__()
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*erase_node.*")


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantization-aware training (Jacob et al. 2018, arXiv 1712.05877) on the grid that ``ctx.grid`` names."""

    training: Training = field(
        default_factory=lambda: Training(epochs=4, lr=0.0001, distill=0.9, precision="32-true", augment=Augment())
    )
    observe: float = 0.5
    """Share of the epochs after which the activation ranges are frozen."""
    calibrate: int = 512
    """Calibration images that set the first ranges."""

    def __post_init__(self) -> None:
        in_range("observe", self.observe, 0, 1)
        in_range("calibrate", self.calibrate, 1, 1_000_000)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        if ctx.grid is None:
            raise StageError("quantization needs a grid: the targets of the recipe accept none in common")
        prepared = Prepare(ctx.grid.to_json(), ctx.input_shape).capture(model)
        self._calibrate(prepared, ctx)
        fit(prepared, self.training, ctx, ctx.baseline if self.training.distill else None, self._before_epoch)
        _freeze(prepared)
        halves.round_prepared(prepared)
        return prepared

    @torch.no_grad()
    def _calibrate(self, prepared: GraphModule, ctx: Context) -> None:
        for index in torch.split(torch.arange(min(self.calibrate, len(ctx.data.calib))), 128):
            prepared(normalise(ctx.data.calib.batch(index), ctx.spec))

    def _before_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch >= self.observe * self.training.epochs:
            _freeze(model)


def _freeze(model: nn.Module) -> None:
    from torchao.quantization.pt2e.fake_quantize import disable_observer

    model.apply(disable_observer)
