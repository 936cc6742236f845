"""How far a network can be pruned at all: known from its structure, before anything is trained or measured."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from edgewise.errors import RequestError, StageError
from edgewise.measure.cost.totals import count_costs
from edgewise.stages.prune import plan
from edgewise.stages.prune.checked_cut import Groups
from edgewise.stages.prune.coupling import cut_channels

if TYPE_CHECKING:
    from torch import nn

    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings

_LEAST_BYTES = 2
"""Of a parameter in any float file."""


def check_reach(model: nn.Module, how: Settings, ctx: Context) -> None:
    """Raise RequestError where no plan can meet a counted budget, or one of so many bytes: with every layer of ``model`` at
    its smallest allowed width more is left. Budgets of time and of a share of a file's bytes want a measurement first."""
    kind, goal = how.budget
    uniform = how.channels is not None and how.scope == "layer"
    if how.max_drop is not None or uniform or kind in ("time", "milliseconds") or (kind == "bytes" and goal < 1):
        return
    try:
        whole, least = measure_reach(model, how, ctx)
    except StageError as error:
        raise RequestError(f"prune: {error}") from error
    if kind == "bytes" and (file := _LEAST_BYTES * least["params"]) > goal:
        raise RequestError(
            f"prune: wanted at most {goal:,.0f} bytes; a file holds {file:,.0f} at least{_ways_out(how)}"
        )
    if kind != "bytes" and (share := least[kind] / whole[kind]) > goal:
        raise RequestError(
            f"prune: wanted {goal:.1%} of the {_WORDS[kind]} left; with every layer at its smallest allowed width {share:.1%} "
            f"are left{_ways_out(how)}"
        )


_WORDS = {"channels": "channels", "macs": "multiply-accumulates", "params": "parameters"}


def _ways_out(how: Settings) -> str:
    shorter = ", or shorten keep" if how.keep else ""
    return f". Keep more, or lower round_to ({how.rounding}) or min_layer ({how.min_layer:g}){shorter}"


def measure_reach(model: nn.Module, how: Settings, ctx: Context) -> tuple[dict[str, float], dict[str, float]]:
    """Channels, macs and params of ``model`` as it is, and with every layer at its smallest allowed width.

    Raises StageError where nothing of it can be pruned.
    """
    trial = copy.deepcopy(model).eval().requires_grad_(True)
    traced = Groups(trial, how, ctx)
    groups, whole = traced.now.groups, _amounts(trial, traced.channels, ctx)
    scores = [torch.arange(group.blocks, dtype=torch.float32) for group in groups]
    rules = plan.Rules("layer", how.rounding, how.min_layer, traced.widths)
    removal = plan.weakest_blocks(scores, plan.removed_after(plan.moves(groups, scores, rules), len(groups)))
    cut_channels(trial, groups, removal)
    gone = sum(group.block_size * len(blocks) for group, blocks in zip(groups, removal, strict=True))
    return whole, _amounts(trial, traced.channels - gone, ctx)


def _amounts(model: nn.Module, channels: int, ctx: Context) -> dict[str, float]:
    totals = count_costs(model, ctx.input_shape)
    return {"channels": channels, "macs": totals.macs, "params": totals.params}
