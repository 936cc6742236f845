"""What is left after blocks went learns to answer as it did with them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import fit_norms
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import run_until_seen
from edgewise.stages.fitting.reconstruct import reconstruct_layers
from edgewise.stages.remove_blocks.plan import Plan
from edgewise.stages.training.blockwise import Points, distill_if_better

_JUDGED = 512


class Settings(Protocol):
    """The fields of ``RemoveBlocks`` that refitting goes by; each is described there."""

    @property
    def reconstruct(self) -> int: ...
    @property
    def reestimate(self) -> int: ...
    @property
    def recover_steps(self) -> int: ...
    @property
    def recover_lr(self) -> float: ...
    @property
    def recover_batch(self) -> int: ...


def refit_network(shallower: nn.Module, whole: nn.Module, plan: Plan, how: Settings, ctx: Context) -> None:
    """Fit ``shallower`` in place, as ``how`` says; both networks in evaluation mode on the context's device."""
    if how.reconstruct:
        ctx.fact("reconstruction", _reconstruct_layers(shallower, whole, how.reconstruct, ctx))
    elif how.reestimate:
        fit_norms(shallower, how.reestimate, ctx)
    if how.recover_steps:
        ctx.fact("recovery", _distill_blocks(shallower, whole, plan, how, ctx))


def _reconstruct_layers(shallower: nn.Module, whole: nn.Module, images: int, ctx: Context) -> dict[str, list[float]]:
    errors = reconstruct_layers(shallower, whole, _layer_outputs(shallower), images, ctx)
    before, after = (sum(pair[which] for pair in errors.values()) / max(len(errors), 1) for which in (0, 1))
    ctx.note(f"{len(errors)} layers fitted anew: relative error of their outputs {before:.2f} -> {after:.2f}, the mean")
    return {name: [*pair] for name, pair in errors.items()}


def _layer_outputs(model: nn.Module) -> dict[str, range]:
    """Every convolution and linear layer with all of its outputs."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    return {
        name: range(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
        for name, layer in layers.items()
    }


def _distill_blocks(shallower: nn.Module, whole: nn.Module, plan: Plan, how: Settings, ctx: Context) -> dict[str, Any]:
    images = draw_batches(ctx.data.calib, _JUDGED, ctx, whole)
    points = _points(shallower, plan, ctx)
    before, after = distill_if_better(
        shallower, whole, points, ctx, images, steps=how.recover_steps, lr=how.recover_lr, batch=how.recover_batch
    )
    return {"steps": how.recover_steps, "loss": [before, after], "points": list(points)}


def _points(shallower: nn.Module, plan: Plan, ctx: Context) -> Points:
    """Where it is compared: behind the blocks, and at the logits."""
    ends = points_of(plan) + [ctx.spec.classifier] * bool(ctx.spec.classifier)
    return dict.fromkeys(run_until_seen(shallower, ends, draw_batches(ctx.data.calib, 1, ctx)[0]))


def points_of(plan: Plan) -> list[str]:
    """The modules behind which every block that stays is compared.

    Where blocks that went follow it, that is the last of them: it is to answer for them all.
    """
    names = {block.name for block in plan.gone}
    pairs = zip(plan.blocks, [*plan.blocks[1:], None], strict=True)
    return [
        block.modules[-1]
        for block, behind in pairs
        if behind is None or behind.name not in names or behind.shape != block.shape
    ]
