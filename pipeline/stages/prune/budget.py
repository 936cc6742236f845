"""Spends a pruning budget: step by step, the least important channels first, each cut checked by running it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.measure.cost.totals import count_costs
from edgewise.stages.fitting.timer import Clock, open_clock
from edgewise.stages.prune import plan, sensitivity
from edgewise.stages.prune.checked_cut import Groups
from edgewise.stages.prune.coupling import Cut, Group, cut_channels
from edgewise.stages.prune.importance import score_blocks
from edgewise.stages.prune.knapsack import by_importance
from edgewise.stages.prune.measured_budget import Aimed, Line, aim_at_budget
from edgewise.stages.prune.predictions import Bytes, Time
from edgewise.stages.prune.proof import has_averaging

if TYPE_CHECKING:
    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings


@dataclass(frozen=True)
class Spent:
    """What became of a network."""

    summary: str
    facts: Mapping[str, Any]
    """For the report; JSON types."""
    cuts: Sequence[Cut]
    """What was cut, step by step."""


@dataclass(frozen=True)
class _Whole:
    """The network before the first step."""

    amount: float
    """Of what the budget limits."""
    widths: Mapping[str, int]
    """Channels of every group."""


@dataclass(frozen=True)
class _State:
    """The network before one step."""

    model: nn.Module
    groups: Sequence[Group]
    channels: int
    """Of all groups, also of those that have nothing left to lose."""
    scores: Sequence[Tensor]
    curves: Sequence[plan.Curve]
    """What a group's loss costs; empty where the budget needs no such thing."""
    moves: Sequence[plan.Move]
    choices: Sequence[Sequence[int]]


def spend_budget(model: nn.Module, how: Settings, ctx: Context, part: float = 1.0) -> Spent:
    """Prune ``model`` in place (in eval mode, every parameter requiring grad), and tell what is left.

    ``part`` (above 0, at most 1): how much of the reduction asked for is made. Raises StageError as ``Prune`` does.
    """
    spender = _spend_measured if how.budget[0] in ("bytes", "time", "milliseconds") else _spend_counted
    groups = Groups(model, how, ctx)
    norms = has_averaging(groups.now.groups)
    spending = spender(groups, how, ctx, part)
    facts = {
        "widths": {name: [width, groups.left[name]] for name, width in groups.widths.items()},
        "left_alone": [{"layer": name, **asdict(alone)} for name, alone in groups.alone.items()],
        "averaging_norms": norms,
    }
    return Spent(spending.summary, {**spending.facts, **facts}, spending.cuts)


def _spend_counted(groups: Groups, how: Settings, ctx: Context, part: float) -> Spent:
    """A budget that is counted: channels, multiply-accumulates, parameters."""
    kind, goal = how.budget
    target, facts, model = 1 - part * (1 - goal), dict[str, Any](), groups.model
    whole, cuts = _Whole(_amount(kind, model, groups.channels, ctx), groups.widths), list[Cut]()
    for step in range(1, how.steps + 1):

        def plan_cut(share: float = 1 - (1 - target) * step / how.steps) -> Cut:
            state = _read_state(groups, how, ctx, facts)
            if how.channels is not None and how.scope != "layer" and how.min_layer == 0:
                plan.refuse_emptying(state.groups, state.scores, (1 - target) / how.steps)
            return state.groups, plan.weakest_blocks(state.scores, _choose_counts(state, how, ctx, whole, share))

        cuts.append(groups.cut(plan_cut))
    amount = _amount(kind, model, groups.channels, ctx)
    summary = f"{kind} {whole.amount:,.0f} -> {amount:,.0f} ({amount / whole.amount:.1%}, wanted {target:.1%})"
    record = {"budget": kind, "wanted": target, "before": whole.amount, "left": amount}
    return Spent(summary, {"budget": record} | facts, cuts)


def _read_state(traced: Groups, how: Settings, ctx: Context, facts: dict[str, Any], curved: bool = False) -> _State:
    """The network's groups, what their channels matter, and the moves among which a step chooses."""
    model, groups = traced.model, traced.now.groups
    scores = score_blocks(how.importance, model, groups, ctx, how.images)
    curves: list[list[float]] = []
    if how.scanned:
        scan = sensitivity.scan_groups(model, how, ctx, how.scanned)
        facts.setdefault("channel_sensitivity", sensitivity.to_json(scan))
        curves = sensitivity.loss_curves(scan, groups, scores)
    if how.scope != "sensitivity":
        curves = by_importance(scores) if curved else []
    rules = plan.Rules(how.scope, how.rounding, how.min_layer, traced.widths)
    moves = plan.moves(groups, scores, rules, curves)
    choices = [plan.allowed_counts(group, importance, rules) for group, importance in zip(groups, scores, strict=True)]
    return _State(model, groups, traced.channels, scores, curves, moves, choices)


def _choose_counts(state: _State, how: Settings, ctx: Context, whole: _Whole, share: float) -> plan.Counts:
    """How many blocks of each group go, so that at most ``share`` of the whole network is left."""
    kind, groups, scores = how.budget[0], state.groups, state.scores

    def left(counts: plan.Counts) -> float:
        trial, removal = copy.deepcopy(state.model), plan.weakest_blocks(scores, counts)
        cut_channels(trial, groups, removal)
        channels = sum(group.block_size * len(blocks) for group, blocks in zip(groups, removal, strict=True))
        return _amount(kind, trial, state.channels - channels, ctx) / whole.amount

    if how.channels is not None and how.scope == "layer":
        return plan.uniform(state.moves, groups, 1 - share / left((0,) * len(groups)))
    return plan.meet_budget(state.moves, len(groups), left, share)


def _amount(kind: str, model: nn.Module, channels: int, ctx: Context) -> float:
    if kind == "channels":
        return channels
    totals = count_costs(model, ctx.input_shape)
    return totals.macs if kind == "macs" else totals.params


def _spend_measured(groups: Groups, how: Settings, ctx: Context, part: float) -> Spent:
    """A budget that is measured on the declared runtime: milliseconds of a call, bytes of a file."""
    facts, cuts, model = dict[str, Any](), list[Cut](), groups.model
    with open_clock(copy.deepcopy(model), ctx) as watch:
        whole = _whole_size(how, watch, model)
        target = 1 - part * (1 - _share(how, whole))
        latest_aim = Aimed((), 1.0, 1.0, ())
        for step in range(1, how.steps + 1):

            def plan_cut(share: float = 1 - (1 - target) * step / how.steps, now: float = latest_aim.measured) -> Cut:
                nonlocal latest_aim
                state = _read_state(groups, how, ctx, facts, curved=True)
                gauge = _make_gauge(how, watch, state, ctx)
                with _in_words(how, whole):
                    latest_aim = aim_at_budget(gauge, share, partial(_cut_copy, state), Line(now))
                if isinstance(gauge, Time):
                    facts["latency_table"] = gauge.table.to_json()
                return state.groups, plan.weakest_blocks(state.scores, latest_aim.counts)

            cuts.append(groups.cut(plan_cut))
    summary, record = _budget_facts(how, ctx, whole, target, latest_aim)
    return Spent(summary, {"budget": record} | facts, cuts)


def _make_gauge(how: Settings, watch: Clock, state: _State, ctx: Context) -> Bytes | Time:
    if how.budget[0] == "bytes":
        return Bytes(watch, state.moves, len(state.groups), partial(_cut_copy, state))
    return Time.of(watch, state.model, state.groups, ctx, how.scope, state.moves, state.choices, state.curves)


def _cut_copy(state: _State, counts: plan.Counts) -> nn.Module:
    trial = copy.deepcopy(state.model)
    cut_channels(trial, state.groups, plan.weakest_blocks(state.scores, counts))
    return trial


def _whole_size(how: Settings, watch: Clock, model: nn.Module) -> float:
    """Milliseconds or bytes of the network before the first step."""
    return watch.bytes if how.budget[0] == "bytes" else watch.read(model).reference_ms


def _share(how: Settings, whole: float) -> float:
    """The budget as a share of the whole network's size or time."""
    kind, goal = how.budget
    share = goal / whole if kind == "milliseconds" or (kind == "bytes" and goal >= 1) else goal
    if share >= 1:
        raise StageError(f"wanted at most {_amount_of(kind, goal)}; the network has {_amount_of(kind, whole)} already")
    return share


def _amount_of(kind: str, value: float) -> str:
    return f"{value:,.0f} bytes" if kind == "bytes" else f"{value:.3g} ms"


@contextmanager
def _in_words(how: Settings, whole: float) -> Iterator[None]:
    """Say what the shares in a message are shares of."""
    try:
        yield
    except StageError as error:
        raise StageError(f"{error} (100 % is {_amount_of(how.budget[0], whole)})") from error


def _budget_facts(how: Settings, ctx: Context, whole: float, target: float, aim: Aimed) -> tuple[str, dict[str, Any]]:
    """In a line, and as JSON types."""
    kind = "bytes" if how.budget[0] == "bytes" else "milliseconds"
    facts = {
        "budget": kind,
        "on": ctx.runtime,
        "threads": ctx.threads,
        "before": whole,
        "wanted": target * whole,
        "predicted": aim.predicted * whole,
        "measured": aim.measured * whole,
        "trials": [{"predicted": trial[0] * whole, "measured": trial[1] * whole} for trial in aim.trials],
    }
    amounts = [_amount_of(kind, share * whole) for share in (1.0, aim.measured, target, aim.predicted)]
    summary = (
        f"{amounts[0]} -> {amounts[1]} on {ctx.runtime} "
        f"({aim.measured:.1%}, wanted {amounts[2]}, predicted {amounts[3]})"
    )
    return summary, facts
