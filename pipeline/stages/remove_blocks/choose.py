"""Which blocks go: those that lose least on the calibration images for the time that they save.

What a block saves is measured in the declared runtime as a part of the whole network: the time without all blocks of its
kind, subtracted from the time with them and divided by their number, so that the noise is divided, too; all of these are
scaled to sum up to what the network without any of them saves. What it loses is read on calibration images, with batch
norms on their own batches' statistics: the divergence of the classes' probabilities from those of the whole network. One
block goes at a time, and what the others lose is read again before the next is chosen, as far as their last reading
leaves it open (lazily: Minoux 1978; prices are taken not to fall).
"""

from __future__ import annotations

import copy
import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.errors import RequestError, StageError
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import FEWEST
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.timer import Clock, open_clock
from edgewise.stages.remove_blocks.find import Block, find_blocks
from edgewise.stages.remove_blocks.plan import Plan, Removed, without_blocks
from edgewise.stages.remove_blocks.settings import Budget
from edgewise.stages.training.execution import autocast, fitting_order, fitting_precision, order_memory
from edgewise.stages.training.settings import ComputePrecision

_SLACK = 0.01
"""How far above the budget, relative to it, a measured time counts as within: the noise of the measurement."""
_NEAR = 0.1
"""From a prediction so near above the budget on, the network itself is measured."""
_LEAST_SAVED = 1e-3
"""Of the whole time: what a block is taken to save at least, so that noise makes none free."""


def choose_blocks(model: nn.Module, budget: Budget, ctx: Context) -> Plan:
    """The plan for ``model``, in evaluation mode on the context's device; raises as ``RemoveBlocks`` does."""
    blocks = find_blocks(model, draw_batches(ctx.data.calib, 1, ctx)[0])
    _refuse_unknown(budget, blocks, ctx)
    free = [block for block in blocks if block.name not in budget.keep]
    if not free:
        why = "keep names all that could go" if blocks else "none has a shortcut, and no run of layers keeps its shape"
        raise StageError(f"no block of {ctx.spec.name} can be removed: {why}")
    if budget.blocks:
        removals = [Removed(block=block, rise=None) for block in blocks if block.name in budget.blocks]
        return Plan(blocks=blocks, removed=removals)
    images = draw_batches(ctx.data.calib, budget.images, ctx, model, fewest=FEWEST)
    precision = fitting_precision("auto", ctx.device, ctx.input_shape, model)
    losses = _Losses(model, images, fitting_order(torch.device(ctx.device), ctx.input_shape, model), precision)
    with open_clock(copy.deepcopy(model), ctx) as watch:
        return _choose_by_time(model, budget, ctx, blocks, free, losses, watch)


def _refuse_unknown(budget: Budget, blocks: Sequence[Block], ctx: Context) -> None:
    unknown = sorted({*budget.blocks, *budget.keep} - {block.name for block in blocks})
    if unknown:
        choices = ", ".join(block.name for block in blocks) or "none"
        raise RequestError(
            f"RemoveBlocks names {', '.join(unknown)}, which cannot be removed from {ctx.spec.name}; choices: {choices}"
        )


def _choose_by_time(
    model: nn.Module, budget: Budget, ctx: Context, blocks: Sequence[Block], free: Sequence[Block], losses: _Losses,
    watch: Clock,
) -> Plan:  # fmt: skip
    whole_ms = watch.read(model).reference_ms
    target = budget.share(whole_ms)
    saves = _measure_savings(model, free, watch, ctx)
    removals, time = list[Removed](), 1.0
    prediction = 1.0
    for removal in ctx.track(losses.order(free, saves), "removing blocks", len(free)):
        removals.append(removal)
        prediction -= saves[removal.block.name]
        if target is None and len(removals) < (budget.count or 0):
            continue
        if target is not None and prediction > target * (1 + _NEAR) and len(removals) < len(free):
            continue
        time = watch.read(without_blocks(model, [r.block for r in removals])).time
        if target is None or time <= target * (1 + _SLACK):
            return Plan(blocks=blocks, removed=removals, saves=saves, whole_ms=whole_ms, wanted=target, measured=time)
    if target is None:
        raise StageError(f"wanted {budget.count} blocks to go; {len(free)} can: {', '.join(b.name for b in free)}")
    raise StageError(
        f"wanted {target:.1%} of {whole_ms:.3g} ms; without all {len(free)} blocks that can go {time:.1%} are left. "
        "Ask for less, shorten keep, or let Prune cut widths as well"
    )


def _measure_savings(model: nn.Module, blocks: Sequence[Block], watch: Clock, ctx: Context) -> dict[str, float]:
    """Block -> the share of the whole network's time that goes with it."""
    kinds = defaultdict(list)
    for block in blocks:
        kinds[block.kind].append(block)
    savings: dict[str, float] = {}
    for alike in ctx.track(kinds.values(), f"timing blocks on {ctx.runtime}", len(kinds)):
        remaining_time = watch.read(without_blocks(model, alike)).time
        savings |= {block.name: max((1 - remaining_time) / len(alike), _LEAST_SAVED) for block in alike}
    together = 1 - watch.read(without_blocks(model, blocks)).time
    return {name: share * max(together, _LEAST_SAVED) / sum(savings.values()) for name, share in savings.items()}


class _Losses:
    """What a network loses with blocks gone."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        order: torch.memory_format = torch.contiguous_format,
        precision: ComputePrecision = "auto",
    ) -> None:
        self._model, self._order, self._precision = order_memory(copy.deepcopy(model), order), order, precision
        self._batches = [images for images in batches if len(images) > 1] or batches
        self._wanted = self._answers(self._model)

    def order(self, free: Sequence[Block], saves: Mapping[str, float]) -> Iterator[Removed]:
        """The blocks in the order in which they are best removed, one at a time; what is lost is read as they are asked for."""
        removals: list[Block] = []
        now = self.read(removals)
        waiting = [(-float("inf"), number, -1) for number in range(len(free))]
        """(rise of the loss for the time saved, block, how many were gone when that was read)"""
        while waiting:
            _, number, then = heapq.heappop(waiting)
            rise = self.read([*removals, free[number]]) - now
            price = rise / saves[free[number].name]
            if then != len(removals) and waiting and price > waiting[0][0]:
                heapq.heappush(waiting, (price, number, len(removals)))
                continue
            removals.append(free[number])
            now += rise
            yield Removed(block=free[number], rise=rise)

    def read(self, gone: Sequence[Block]) -> float:
        """Mean Kullback-Leibler divergence in nats from the whole network's classes, without the blocks ``gone``."""
        answers = self._answers(without_blocks(self._model, gone) if gone else self._model)
        return float(F.kl_div(answers, self._wanted, reduction="batchmean", log_target=True))

    def _answers(self, model: nn.Module) -> Tensor:
        """Logarithms of the classes' probabilities [N, classes], computed as a training computes them."""
        device = next(model.parameters()).device.type
        with torch.inference_mode(), _own_statistics(model), autocast(self._precision, device):
            ordered = (images.contiguous(memory_format=self._order) for images in self._batches)
            return torch.cat([F.log_softmax(model(images).float(), 1).cpu() for images in ordered])


@contextmanager
def _own_statistics(model: nn.Module) -> Iterator[None]:
    """While open, batch norms normalise with each batch's own statistics, and keep theirs as they were."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    batch_counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, batch_counts, strict=True):
            norm.eval()
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
