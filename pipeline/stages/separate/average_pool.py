"""Average pooling in the place of max pooling, for targets and quantizers that want no maximum.

Per channel c the average over a window is mapped to the maximum by the affine map that fits best,

    max ≈ a_c · avg + b_c,    a_c = Cov(avg, max) / Var(avg),    b_c = E max − a_c · E avg,

the least squares line over the windows of real images (a maximum is no linear function of its window, so that an error
is left; Boureau, Ponce, LeCun 2010, A Theoretical Analysis of Feature Pooling, section 3, tell when the two are close).
It runs as a depthwise 1 x 1 convolution behind the pooling. The moments are sums in float64, over whole images.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.models._layers import CeilMaxPool
from edgewise.network import surgery
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import capture_values
from edgewise.stages.separate.budget import Judge
from edgewise.stages.separate.plan import Candidate, check_names, plan_facts


@check_fields
@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """Replaces max pooling by average pooling with the affine map per channel that comes closest to it."""

    fit: bool = True
    """False: plain averages, without the affine map; the fine-tuning has to make up for more."""
    images: Annotated[int, Interval(ge=2, le=1_000_000)] = 512
    """Training images the map is fitted on (as many calibration images judge it)."""
    max_error: Annotated[float, Interval(ge=0, le=1000)] = 1.0
    """Largest relative error of a pooling's outputs on calibration images; one with more stays."""
    layers: tuple[str, ...] | None = None
    """Only these are considered; None: every max pooling."""
    keep: tuple[str, ...] = ()
    """These stay."""

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(cuts=True, learns_from="images", decides=True)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A copy of ``model`` with average poolings. Raises StageError when there is none to replace."""
        teacher = copy.deepcopy(model).to(ctx.device).eval()
        plan = self._plan(teacher, ctx)
        for candidate in plan:
            ctx.note(candidate.line())
        names = [candidate.name for candidate in plan if candidate.accepted]
        if not names:
            raise StageError(_nothing_reason(plan))
        student = self._done(teacher, teacher, names, draw_batches(ctx.data.train, self.images, ctx, teacher))
        ctx.fact(
            "plan", plan_facts("average pooling", plan, Judge(ctx=ctx).states(before=teacher, substituted=student))
        )
        return student.to(next(model.parameters()).device).train(model.training)

    def _plan(self, teacher: nn.Module, ctx: Context) -> list[Candidate]:
        candidates = _survey_pools(teacher, draw_batches(ctx.data.calib, 1, ctx)[0], self.fit)
        check_names(self.layers or (), candidates, "layers")
        check_names(self.keep, candidates, "keep")
        fitting, judging = (draw_batches(part, self.images, ctx, teacher) for part in (ctx.data.train, ctx.data.calib))
        return [self._judged(c, teacher, fitting, judging) for c in candidates]

    def _judged(
        self, candidate: Candidate, teacher: nn.Module, fitting: Sequence[Tensor], judging: Sequence[Tensor]
    ) -> Candidate:
        if candidate.reason:
            return candidate
        name = candidate.name
        if name in self.keep or (self.layers is not None and name not in self.layers):
            return replace(candidate, reason="kept by request" if name in self.keep else "not asked for")
        alone = self._done(teacher, teacher, [name], fitting)
        error = _relative_error(alone, teacher, name, judging)
        if error > self.max_error:
            return replace(candidate, error=error, reason=f"the error is above {self.max_error:g}")
        return replace(candidate, error=error, accepted=True, reason=f"the error is within {self.max_error:g}")

    def _done(self, model: nn.Module, teacher: nn.Module, names: Iterable[str], batches: Sequence[Tensor]) -> nn.Module:
        """The poolings replaced and fitted in order, each on what those before it hand on."""
        for name in names:
            source = model
            pool = model.get_submodule(name)
            channels = _channels(model, name, batches[0][:1])
            model = surgery.apply(model, surgery.Replace({name: _describe_pool(pool, channels if self.fit else 0)}))
            model.to(batches[0].device).eval()
            if self.fit:
                new = model.get_submodule(name)
                assert isinstance(new, nn.Sequential)
                _fit_affine(new, source, teacher, name, batches)
        return model


def _survey_pools(model: nn.Module, image: Tensor, fit: bool) -> list[Candidate]:
    shapes: dict[str, tuple[Tensor, Tensor]] = {}
    calls: Counter[str] = Counter()
    pools = {name: module for name, module in model.named_modules() if isinstance(module, (nn.MaxPool2d, CeilMaxPool))}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            calls[name] += 1
            shapes[name] = args[0], output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(listen(name)) for name, module in pools.items()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return [_make_candidate(name, pools[name], *shapes[name], calls[name], fit) for name in shapes]


def _make_candidate(name: str, pool: nn.Module, inputs: Tensor, output: Tensor, calls: int, fit: bool) -> Candidate:
    size, stride, padding = _geometry(pool)
    text = f"{inputs.shape[1]} channels, {size[0]}x{size[1]}, stride {stride[0]}"
    expected = [(g + 2 * p - s) // t + 1 for g, p, s, t in zip(inputs.shape[2:], padding, size, stride, strict=True)]
    reason = ""
    if isinstance(pool, nn.MaxPool2d) and (pool.return_indices or pool.dilation not in (1, (1, 1))):
        reason = "it is dilated or returns the places of its maxima"
    elif list(output.shape[2:]) != expected:
        reason = "its last window stands over the edge"
    elif calls != 1:
        reason = f"it runs {calls} times in one pass"
    macs = output[0].numel() if fit else 0
    return Candidate(
        name=name, shape=text, dense_macs=0, new_macs=macs, input_shape=(1, *inputs.shape[1:]), reason=reason
    )


def _geometry(pool: nn.Module) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    assert isinstance(pool, (nn.MaxPool2d, CeilMaxPool))
    padding = pool.padding if isinstance(pool, nn.MaxPool2d) else 0
    return _as_pair(pool.kernel_size), _as_pair(pool.stride), _as_pair(padding)


def _as_pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _describe_pool(pool: nn.Module, channels: int) -> dict[str, Any]:
    """An average pooling, behind it the affine map where there are ``channels``."""
    size, stride, padding = map(list, _geometry(pool))
    # The padding of a maximum adds nothing to it, so that it must not count in the mean.
    args = {"kernel_size": size, "stride": stride, "padding": padding, "count_include_pad": False}
    average = {"type": "AvgPool2d", "args": args}
    if not channels:
        return average
    affine = {"in_channels": channels, "out_channels": channels, "kernel_size": [1, 1], "groups": channels}
    return {"type": "Sequential", "children": [average, {"type": "Conv2d", "args": affine}]}


@torch.no_grad()
def _fit_affine(
    new: nn.Sequential, student: nn.Module, teacher: nn.Module, name: str, batches: Sequence[Tensor]
) -> None:
    average, affine = new
    assert isinstance(affine, nn.Conv2d) and affine.bias is not None
    sums = torch.zeros(5, affine.out_channels, dtype=torch.float64, device=affine.weight.device)
    with capture_values(student, [name], "input") as inputs, capture_values(teacher, [name], "output") as outputs:
        for images in batches:
            teacher(images)
            if student is not teacher:
                student(images)
            x, y = (t.double().transpose(0, 1).flatten(1) for t in (average(inputs[name]), outputs[name]))
            sums += torch.stack([torch.ones_like(x).sum(1), x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1)])
    slope, offset = fit_line(*sums)
    affine.weight.copy_(slope[:, None, None, None])
    affine.bias.copy_(offset)


def fit_line(count: Tensor, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of the least squares line per channel, from the sums [C]; slope 1 where x does not vary."""
    mean_x, mean_y = x / count, y / count
    variance, covariance = xx / count - mean_x.square(), xy / count - mean_x * mean_y
    varies = variance > 1e-12 * (xx / count).clamp_min(torch.finfo(torch.float64).tiny)
    slope = torch.where(varies, covariance / torch.where(varies, variance, 1.0), 1.0)
    return slope, mean_y - slope * mean_x


@torch.no_grad()
def _relative_error(student: nn.Module, teacher: nn.Module, name: str, batches: Sequence[Tensor]) -> float:
    """Root of E‖y − found‖² / E‖y − E y‖², with the mean over images and positions per channel."""
    wrong: list[Tensor] = []
    right: list[Tensor] = []
    with capture_values(student, [name], "output") as ours, capture_values(teacher, [name], "output") as theirs:
        for images in batches:
            student(images)
            teacher(images)
            wrong.append((ours[name] - theirs[name]).double().square().sum())
            right.append(theirs[name].double().transpose(0, 1).flatten(1).cpu())
    answers = torch.cat(right, 1)
    spread = (answers - answers.mean(1, keepdim=True)).square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float((torch.stack(wrong).sum().cpu() / spread).sqrt())


@torch.no_grad()
def _channels(model: nn.Module, name: str, image: Tensor) -> int:
    with capture_values(model, [name], "input") as inputs:
        model(image)
    return inputs[name].shape[1]


def _nothing_reason(plan: Sequence[Candidate]) -> str:
    if not plan:
        return "there is no max pooling in this network; leave this step out"
    reasons = "; ".join(f"{c.name}: {c.reason}" for c in plan)
    return f"no max pooling can be replaced ({reasons}); relax max_error or keep, or leave this step out"
