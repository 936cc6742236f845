"""A plan under an accuracy budget: layers join, the cheapest for what they save first, as long as the budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgewise.measure.answers import compute_logits
from edgewise.measure.statistics import divergence
from edgewise.stage import Context
from edgewise.stages.fitting.least_squares import Fitted
from edgewise.stages.separate.plan import Candidate, describe_merits, undecided_candidates
from edgewise.stages.separate.substitute import Swap


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Judges networks on the calibration images."""

    ctx: Context

    def answers(self, network: nn.Module) -> Tensor:
        """Logits [N, classes] for every calibration image."""
        device = torch.device(self.ctx.device)
        return compute_logits(lambda images: network(images.to(device)), self.ctx.data.calib, self.ctx.spec)

    def top1(self, answers: Tensor) -> float:
        """Share of the calibration images that these logits get right."""
        return float((answers.argmax(1) == self.ctx.data.calib.labels).float().mean())

    def states(self, **networks: nn.Module) -> dict[str, float]:
        """Top-1 of each network under its name, and ``n``, the number of images."""
        accuracies = {name: self.top1(self.answers(network)) for name, network in networks.items()}
        return {"n": len(self.ctx.data.calib)} | accuracies


def price_candidates(
    candidates: Sequence[Candidate], teacher: nn.Module, fits: dict[str, Fitted], swap: Swap, judge: Judge
) -> list[Candidate]:
    """The candidates with what each costs the network's answers when it alone is replaced.

    The divergence of the classes tells layers apart that lose no image, where a change of top-1 would be 0 for most.
    """
    reference = judge.answers(teacher)
    costs = {}
    names = [c.name for c in undecided_candidates(candidates)]
    for name in judge.ctx.track(names, "what each layer costs", len(names)):
        alone = swap.done(teacher, [name])
        swap.fill(alone, name, fits[name])
        costs[name] = divergence(judge.answers(alone), reference)
    return [replace(c, cost=costs.get(c.name)) for c in candidates]


def spend_budget(
    candidates: Sequence[Candidate],
    teacher: nn.Module,
    swap: Swap,
    batches: Sequence[Tensor],
    judge: Judge,
    *,
    max_drop: float,
    max_layers: int | None,
) -> tuple[Candidate, ...]:
    """The verdict under a budget: in the order of cost per time (or MAC) saved, each layer is fitted into the network
    with those accepted before it, and joins them if top-1 on the calibration images falls by at most ``max_drop`` in
    all. A layer that is refused leaves its share of the budget to those after it."""
    before, student = judge.top1(judge.answers(teacher)), teacher
    by_cost = sorted(undecided_candidates(candidates), key=lambda c: (c.cost or 0.0) / c.gain)
    verdicts: dict[str, Candidate] = {}
    count = 0
    for rank, candidate in enumerate(judge.ctx.track(by_cost, "which layers the budget takes", len(by_cost)), start=1):
        if count == max_layers:
            verdicts[candidate.name] = replace(candidate, reason=f"{max_layers} others cost less for what they save")
            continue
        trial = swap.done(student, [candidate.name])
        swap.fit(trial, teacher, candidate.name, batches)
        top1 = judge.top1(judge.answers(trial))
        fits = before - top1 <= max_drop + 1e-9
        verdicts[candidate.name] = replace(
            candidate, top1=top1, accepted=fits, reason=_reason(candidate, rank, top1, before, max_drop, fits)
        )
        if fits:
            student, count = trial, count + 1
    return tuple(verdicts.get(c.name, c) for c in candidates)


def _reason(candidate: Candidate, rank: int, top1: float, before: float, max_drop: float, fits: bool) -> str:
    order = f"{_ordinal(rank)} by cost for what it saves"
    state = f"top-1 on calibration images {top1:.2%} with it, {before:.2%} before, {100 * max_drop:g} points allowed"
    return f"{describe_merits(candidate)}; {order}; {state}" if fits else f"{order}; {state}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
