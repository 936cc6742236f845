"""Quantization-aware training on a captured graph, once per quantization grid.

The network is captured with its batch norms already folded and dropout off, gets fake quantizers by the targets' one
int8 quantizer, and is trained on: ranges are observed first, then frozen. What it learned is tensors; the graph is
rebuilt from the float network and the grid.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import nn
from torch.fx import GraphModule

from edgewise.errors import RequestError, StageError
from edgewise.measure.batches import images_at_once
from edgewise.network import float16_constants, graph_layers
from edgewise.network.captured import Prepare
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.fitting.image_batches import batches_of
from edgewise.stages.quantize import sensitivity
from edgewise.stages.quantize.calibrate import Ranges, activation_quantizers, correct_biases, set_ranges
from edgewise.stages.quantize.graph_settings import check_unchanged, read_constants
from edgewise.stages.quantize.rounding import round_weights
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training
from edgewise.stages.training.teaching import teacher_for


@check_fields
@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantization on the grid that ``ctx.grid`` names: calibrated, then trained (Jacob et al. 2018, arXiv 1712.05877).

    Batch norms are folded before, not simulated: every step then trains exactly what is deployed, and there are no
    statistics left to freeze. The price is a small learning rate, since what the norms scaled is now in the weights.
    """

    training: Training | None = field(
        default_factory=lambda: Training(epochs=4, lr=0.0001, distill=0.9, augment=Augment())
    )
    """None: calibration alone (post-training quantization)."""
    when_needed: bool = False
    """Train only where the calibrated network loses more than ``budget`` of top-1 on the calibration images."""
    observe: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share of the epochs after which the activation ranges are frozen."""
    calibrate: Annotated[int, Interval(ge=1, le=1_000_000)] = 512
    """Calibration images that set the first ranges."""
    ranges: Ranges = "percentile"
    """How calibration chooses them: minmax, percentile or mse."""
    round_weights: bool = True
    """Choose each weight's integer so that its layer's answers change least, which takes the calibration images' covariances;
    False: the nearest. With training, which learns the weights, not done."""
    bias_correction: bool = True
    """Move biases so that the weights' rounding keeps each channel's mean; with training, which learns them, not done."""
    learn_ranges: bool = False
    """Train the activations' scales as well (learned step size) instead of following a moving average."""
    control: bool = True
    """Report calibration alone, on the same grid, beside what training makes of it."""
    sensitivity: Annotated[int, Interval(ge=0, le=1_000_000)] = 128
    """Calibration images on which each layer's own cost is measured, for the report; 0: not measured."""
    budget: Annotated[float, Interval(ge=0, le=1)] = 0.005
    """Top-1 that the calibrated network may lose on those images, before any training, ..."""
    max_float_layers: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    """... or else its costliest layers are left in float, at most this many."""

    def __post_init__(self) -> None:
        if self.max_float_layers and not self.sensitivity:
            raise RequestError(
                f"Quantize.max_float_layers {self.max_float_layers} leaves the costliest layers in float, which sensitivity "
                "finds; set it to the images to measure on, or max_float_layers to 0"
            )

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(
            precision=self.training.precision if self.training else None,
            learns_from="labels" if self.training else "nothing",
            decides=self.when_needed and self.training is not None,
        )

    def milder(self) -> Quantize:
        """The same with two more of the costliest layers left in float, if they cost what ``budget`` does not allow."""
        return dataclasses.replace(
            self, max_float_layers=self.max_float_layers + 2, sensitivity=max(self.sensitivity, 128)
        )

    def untrained(self) -> Quantize:
        """Calibration alone. What each layer costs is measured on it only where that chooses the layers left in float: the
        step itself measures it for the report."""
        return replace(self, training=None, sensitivity=self.sensitivity if self.max_float_layers else 0)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        if ctx.grid is None:
            raise StageError("quantization needs a grid: the targets of the recipe accept none in common")
        if self.when_needed and self.training is not None and (calibrated := self._enough(model, ctx)) is not None:
            return calibrated
        prepared = self._prepare(model, ctx, ())
        float_layers = self._examine(prepared, ctx) if self.sensitivity else ()
        if float_layers:
            prepared = self._prepare(model, ctx, float_layers)
        settings = read_constants(prepared)
        if self.training is not None:
            self._train(
                prepared, _Rebuild(model, ctx.grid.to_json(), ctx.input_shape, float_layers, self.learn_ranges), ctx
            )
        check_unchanged(prepared, settings)
        freeze_ranges(prepared)
        float16_constants.round_prepared(prepared)
        return prepared

    def _enough(self, model: nn.Module, ctx: Context) -> nn.Module | None:
        """The network that calibration alone gives, where it keeps within ``budget``; else None, and the loss is told."""
        untrained = self.untrained()
        calibrated = ctx.kept(untrained)
        if calibrated is None:
            calibrated = untrained(model, ctx)
        assert isinstance(calibrated, GraphModule)
        before, after = (_count_correct(network, ctx) for network in (copy.deepcopy(model).eval(), calibrated))
        n = len(ctx.data.calib)
        enough = before - after <= self.budget * n
        facts = {"n": n, "lost": (before - after) / n, "allowed": self.budget, "trained": not enough}
        ctx.fact("training_needed", facts)
        ctx.note(
            f"calibration alone {'loses' if before >= after else 'gains'} {100 * abs(before - after) / n:.2f} points of top-1 on {n:,} calibration images, "
            f"{100 * self.budget:g} allowed: {'no training' if enough else 'trained'}"
        )
        if enough and self.sensitivity and not untrained.sensitivity:
            self._examine(calibrated, ctx)
        return calibrated if enough else None

    def _prepare(self, model: nn.Module, ctx: Context, float_layers: tuple[str, ...]) -> GraphModule:
        assert ctx.grid is not None
        prepared = Prepare(ctx.grid.to_json(), ctx.input_shape, float_layers).capture(model)
        self._calibrate(prepared, ctx)
        return prepared

    def _examine(self, prepared: GraphModule, ctx: Context) -> tuple[str, ...]:
        """Measure every layer's cost, keep it for the report, and name the layers to leave in float."""
        index = torch.arange(min(self.sensitivity, len(ctx.data.calib)))
        scan = sensitivity.Scan(prepared, batches_of(ctx.data.calib, index, replace(ctx, device="cpu"), prepared))
        costs = sensitivity.measure_sensitivity(scan, ctx.track)
        float_layers = sensitivity.fall_back(
            scan, costs, ctx.data.calib.labels[index], self.budget, self.max_float_layers
        )
        ctx.fact("sensitivity", [cost.to_json() for cost in costs])
        ctx.fact("float_layers", list(float_layers))
        if float_layers:
            ctx.note(f"left in float: {', '.join(float_layers)}")
        return float_layers

    def _calibrate(self, prepared: GraphModule, ctx: Context) -> None:
        start = time.perf_counter()
        prepared.to(ctx.device)
        index = torch.arange(min(self.calibrate, len(ctx.data.calib)))
        batches = batches_of(ctx.data.calib, index, ctx, prepared, most=128)
        set_ranges(prepared, batches, self.ranges)
        if self.training is None and self.round_weights:
            round_weights(prepared, batches, ctx.seed)
        if self.training is None and self.bias_correction:
            most = max(1, _AT_ONCE // math.prod(ctx.input_shape))
            correct_biases(prepared, batches.first(images_at_once(prepared, ctx.input_shape, most, _MOST_BYTES)))
        prepared.to("cpu")
        ctx.fact("calibration", {"images": len(index), "seconds": time.perf_counter() - start})

    def _train(self, prepared: GraphModule, rebuild: _Rebuild, ctx: Context) -> None:
        training = self.training
        assert training is not None
        if self.learn_ranges:
            _learn_ranges(prepared)
        fit(prepared, training, ctx, teacher_for(training, ctx), self._before_epoch, rebuild)
        for module in activation_quantizers(prepared).values():
            module.settle()
        _weights_on_their_grid(prepared)

    def _before_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.training is not None and epoch >= self.observe * self.training.epochs:
            freeze_ranges(model)


@torch.no_grad()
def _count_correct(network: nn.Module, ctx: Context) -> int:
    """How many of the calibration images a network puts into their class."""
    part = ctx.data.calib
    batches = batches_of(part, torch.arange(len(part)), replace(ctx, device="cpu"), network, most=128)
    classes = torch.cat([network(images).argmax(1) for images in batches])
    return int((classes == part.labels).sum())


@dataclass(frozen=True)
class _Rebuild:
    """Makes a prepared graph anew where training is shared by several processes: a graph itself cannot be sent."""

    model: nn.Module
    grid: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    float_layers: tuple[str, ...]
    learn_ranges: bool

    def __call__(self) -> nn.Module:
        prepared = Prepare(self.grid, self.input_shape, self.float_layers).capture(self.model)
        if self.learn_ranges:
            _learn_ranges(prepared)
        return prepared


def _learn_ranges(prepared: GraphModule) -> None:
    for module in activation_quantizers(prepared).values():
        module.learn()


@torch.no_grad()
def _weights_on_their_grid(prepared: GraphModule) -> None:
    """Take each weight's scale from the weight as it is: the last step moved it, or an average stands in its place."""
    weights = dict(prepared.named_parameters())
    for node in prepared.graph.nodes:
        if graph_layers.is_fake_quantizer(prepared, node) and node.args[0].target in weights:
            prepared.get_submodule(node.target)(weights[node.args[0].target])


def freeze_ranges(model: nn.Module) -> None:
    """Stop following ranges; the scales become what every runtime holds, before training goes on with them."""
    from torchao.quantization.pt2e.fake_quantize import disable_observer

    model.apply(disable_observer)
    float16_constants.round_scales(model)


_AT_ONCE = 2**23
"""Numbers in the images that bias correction sends through in one batch, ..."""
_MOST_BYTES = 2**29
"""... and bytes of activations in it."""
