"""Global average pooling and one linear layer in the place of a fully connected head.

A head of linear layers on a flattened C x G x G grid (AlexNet, VGG) holds most of its network's weights. With f the mean
of the C feature maps over the image (Lin, Chen, Yan 2013, Network in Network, arXiv 1312.4400, section 3.2) the one
layer W, b that takes its place is fitted to the head's own logits y on real images, the linear least squares problem

    minimise E‖y − W·f − b‖² + λ·‖W‖²_D,    (Cov(f, f) + λ·D) W' = Cov(f, y),    b = E y − W·E f,

with D the features' variances, so that λ (the ridge) has no unit. Float64 throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.models._layers import GridMean
from edgewise.network import surgery
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import capture_values
from edgewise.stages.separate.budget import Judge
from edgewise.stages.separate.plan import Candidate, plan_facts

_POOLS = (GridMean, nn.AdaptiveAvgPool2d)
_SIMPLE = (nn.Linear, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Dropout, nn.Identity, nn.Flatten)


@check_fields
@dataclass(frozen=True, kw_only=True)
class PooledHead:
    """Replaces a fully connected head by global average pooling and one linear layer fitted to its logits."""

    images: Annotated[int, Interval(ge=2, le=10_000_000)] = 4096
    """Training images the layer is fitted on (the calibration images judge it)."""
    ridge: Annotated[float, Interval(ge=0, le=1000)] = 1e-3
    """λ: how much each weight is held towards 0, relative to its feature's variance."""
    max_error: Annotated[float, Interval(ge=0, le=1000)] = 1.0
    """Largest relative error of the logits on calibration images; beyond it the head stays, and the step fails."""

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(cuts=True, learns_from="images", decides=True)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A copy of ``model`` with the small head. Raises StageError where it has no such head, or the error is too large."""
        teacher = copy.deepcopy(model).to(ctx.device).eval()
        head = _find_head(teacher, ctx.spec.classifier, draw_batches(ctx.data.calib, 2, ctx)[0])
        weight, bias = fit_head(
            *_gather_means(teacher, head, draw_batches(ctx.data.train, self.images, ctx, teacher)), self.ridge
        )
        student = _replace_head(teacher, head, weight, bias)
        features, logits = _gather_means(teacher, head, draw_batches(ctx.data.calib, len(ctx.data.calib), ctx, teacher))
        error = _relative_error(features @ weight.T + bias, logits)
        is_accepted = error <= self.max_error
        word = "within" if is_accepted else "above"
        candidate = head.candidate(error, is_accepted, f"the error of the logits is {word} {self.max_error:g}")
        ctx.note(candidate.line())
        if not is_accepted:
            raise StageError(f"{candidate.line()}; relax max_error, or leave this step out")
        ctx.fact(
            "plan", plan_facts("pooled head", [candidate], Judge(ctx=ctx).states(before=teacher, substituted=student))
        )
        return student.to(next(model.parameters()).device).train(model.training)


@dataclass(frozen=True, kw_only=True)
class _Head:
    pool: str
    """The pooling in front of it."""
    name: str
    """The Sequential of its layers."""
    layers: tuple[str, ...]
    """Their names, in order."""
    widths: tuple[int, ...]
    """Inputs of each linear layer, then the classes."""
    channels: int
    """Feature maps that the pooling is given."""

    def candidate(self, error: float, accepted: bool, reason: str) -> Candidate:
        """The verdict as the report shows it."""
        return Candidate(
            name=self.name,
            shape=" to ".join(map(str, self.widths)),
            dense_macs=sum(a * b for a, b in pairwise(self.widths)),
            new_macs=self.channels * self.widths[-1],
            error=error,
            accepted=accepted,
            reason=reason,
        )


def _find_head(model: nn.Module, classifier: str, images: Tensor) -> _Head:
    name = classifier.rpartition(".")[0]
    head = model.get_submodule(name)
    children = list(head.named_children())
    odd = [type(module).__name__ for _, module in children if not isinstance(module, _SIMPLE)]
    if not name or not isinstance(head, nn.Sequential) or f"{name}.{children[-1][0]}" != classifier or odd:
        detail = f", found {', '.join(odd)}" if odd else ""
        raise StageError(
            f"the classifier {classifier!r} does not end a Sequential of linear layers and activations{detail}; "
            "this step replaces heads as AlexNet's and VGG's, so leave it out"
        )
    pool, inputs = _feeding_pool(model, name, images)
    linear = [module for _, module in children if isinstance(module, nn.Linear)]
    widths = (*(layer.in_features for layer in linear), linear[-1].out_features)
    if len(linear) == 1 and widths[0] == inputs.shape[1]:
        raise StageError(f"{name} is one linear layer on the mean of every feature map already; leave this step out")
    layers = tuple(f"{name}.{child}" for child, _ in children)
    return _Head(pool=pool, name=name, layers=layers, widths=widths, channels=inputs.shape[1])


def _feeding_pool(model: nn.Module, head: str, images: Tensor) -> tuple[str, Tensor]:
    """The pooling whose flattened output is what ``head`` is given, and its own input [N, C, H, W]."""
    pools = [name for name, module in model.named_modules() if isinstance(module, _POOLS)]
    with (
        torch.no_grad(),
        capture_values(model, pools, "input") as inputs,
        capture_values(model, pools, "output") as outputs,
        capture_values(model, [head], "input") as head_inputs,
    ):
        model(images)
    for name in pools:
        if name in outputs and torch.equal(outputs[name].flatten(1), head_inputs[head].flatten(1)):
            return name, inputs[name]
    raise StageError(f"{head} is not fed by an average pooling over a grid; this step cannot tell its feature maps")


@torch.no_grad()
def _gather_means(model: nn.Module, head: _Head, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means of the feature maps [N, C] and the logits [N, classes], float64."""
    features, logits = [], []
    with capture_values(model, [head.pool], "input") as inputs, capture_values(model, [head.name], "output") as outputs:
        for images in batches:
            model(images)
            features.append(inputs[head.pool].double().mean((2, 3)))
            logits.append(outputs[head.name].double())
    return torch.cat(features), torch.cat(logits)


def fit_head(features: Tensor, logits: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [classes, C] and bias [classes] of the ridge regression of ``logits`` [N, classes] on ``features`` [N, C]."""
    mean_f, mean_y = features.mean(0), logits.mean(0)
    f, y = features - mean_f, logits - mean_y
    covariance = f.T @ f / len(f)
    diagonal = covariance.diagonal()
    floor = 1e-9 * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)  # a feature that never varies
    system = covariance + torch.diag(ridge * diagonal + floor)
    weight = torch.cholesky_solve(f.T @ y / len(f), torch.linalg.cholesky(system)).T
    return weight, mean_y - weight @ mean_f


def _relative_error(answers: Tensor, expected: Tensor) -> float:
    """Root of E‖y − found‖² / E‖y − E y‖²."""
    spread = (expected - expected.mean(0)).square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(((answers - expected).square().sum() / spread).sqrt())


def _replace_head(model: nn.Module, head: _Head, weight: Tensor, bias: Tensor) -> nn.Module:
    last = head.layers[-1]
    modules: dict[str, dict[str, Any]] = {name: {"type": "Identity"} for name in head.layers[:-1]}
    modules[head.pool] = {"type": "GridMean", "args": {"size": 1}}
    modules[last] = {"type": "Linear", "args": {"in_features": head.channels, "out_features": head.widths[-1]}}
    student = surgery.apply(model, surgery.Replace(modules)).to(weight.device).eval()
    linear = student.get_submodule(last)
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return student
