"""Sparse learning before pruning: training that pushes whole groups of channels towards zero.

Fang et al. 2023 (DepGraph, arXiv 2301.12900, section 3.3, equation 4): to the loss comes the sum over all blocks k of all
groups of γ_k·I_k, with I_k the squared weights of the block in every layer it lies in, and
γ_k = 2^(α·(I_max − I_k)/(I_max − I_min)), so that a group's least important blocks are pulled hardest.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.prune.channels import BATCH_NORMS, WEIGHTED, channel_view
from edgewise.stages.prune.checked_cut import trace_for
from edgewise.stages.prune.coupling import Group, Member
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training
from edgewise.stages.training.teaching import teacher_for

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


_SMALL = 0.01
"""A block whose squared weights are a smaller share of its group's largest counts as sparse in the report."""


@check_fields
@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Trains on with group regularisation, so that the channels a later ``Prune`` removes matter less."""

    training: Training = field(default_factory=lambda: Training(epochs=100, lr=0.01))
    strength: Annotated[float, Interval(ge=0, le=1)] = 5e-4
    """Weight of the regularisation in the loss."""
    sharpness: Annotated[float, Interval(ge=0, le=64)] = 4.0
    """α: how much harder the least important blocks are pulled than the most important, 2^α times."""
    keep: tuple[str, ...] = ()
    """Layers whose output channels are left alone, as they are by ``Prune``."""

    def __post_init__(self) -> None:
        if self.training.devices > 1:
            raise RequestError("sparse learning runs on one device; set devices=1 for it")

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(cuts=True, precision=self.training.precision, learns_from="labels")

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A trained copy of ``model``. Raises StageError where no group of channels could be pruned later."""
        trained = copy.deepcopy(model)
        groups = trace_for(copy.deepcopy(model).eval().requires_grad_(True), self.keep, ctx).groups
        pull = _Pull(groups, self.strength, self.sharpness)
        before = _count_sparse(trained, groups)
        try:
            fit(trained, self.training, ctx, teacher_for(self.training, ctx), pull.renew)
        finally:
            pull.release()
        after = _count_sparse(trained, groups)
        ctx.fact("sparse_blocks", {"before": before, "after": after, "of": sum(group.blocks for group in groups)})
        ctx.note(f"{after} of {sum(group.blocks for group in groups)} blocks are sparse, {before} were")
        return trained


class _Pull:
    """Adds the regularisation's gradient to that of every parameter; its factors are renewed before each epoch."""

    def __init__(self, groups: Sequence[Group], strength: float, sharpness: float) -> None:
        self._groups, self._strength, self._sharpness = groups, strength, sharpness
        self._hooks: list[RemovableHandle] = []

    def renew(self, model: nn.Module, _: int) -> None:
        """Look at the weights as they are now."""
        self.release()
        for parameter, factor in penalty_factors(model, self._groups, self._sharpness).items():
            if parameter.requires_grad:  # what is frozen does not learn to be sparse either
                self._hooks.append(_pull_parameter(parameter, 2 * self._strength * factor))

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _pull_parameter(parameter: nn.Parameter, factor: Tensor) -> RemovableHandle:
    def add(gradient: Tensor) -> Tensor:
        return gradient + factor * parameter.detach()

    register: Any = parameter.register_hook
    handle: RemovableHandle = register(add)
    return handle


def penalty_factors(model: nn.Module, groups: Sequence[Group], sharpness: float) -> Mapping[nn.Parameter, Tensor]:
    """Parameter -> sum of γ over the blocks that each of its numbers belongs to, shaped as the parameter.

    ``model`` has the module names of the network the groups were traced in.
    """
    terms: dict[nn.Parameter, Tensor] = {}
    for group in groups:
        gamma = _gamma(_block_squares(model, group), sharpness)
        for member in _regularised_members(group):
            layer = model.get_submodule(member.name)
            weight = layer.get_parameter("weight")
            factor = terms.setdefault(weight, torch.zeros_like(weight))
            places = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
            rows = channel_view(layer, member.side, places)[member.channels.to(weight.device)].flatten(1)
            flat = factor.contiguous().view(-1)
            flat.index_add_(0, rows.flatten(), gamma[:, None].expand_as(rows).flatten().to(weight))
            terms[weight] = flat.view(weight.shape)
    return terms


def _gamma(importance: Tensor, sharpness: float) -> Tensor:
    spread = (importance.max() - importance.min()).clamp_min(torch.finfo(importance.dtype).tiny)
    gamma: Tensor = 2 ** (sharpness * (importance.max() - importance) / spread)
    return gamma


@torch.no_grad()
def _block_squares(model: nn.Module, group: Group) -> Tensor:
    """Squared weights of every block, summed over all layers: [blocks]."""
    total = torch.zeros(group.blocks)
    for member in _regularised_members(group):
        layer = model.get_submodule(member.name)
        weight = layer.get_parameter("weight").detach()
        rows = channel_view(layer, member.side, weight).square().sum(1).float().cpu()
        total += rows[member.channels].sum(1)
    return total


def _regularised_members(group: Group) -> list[Member]:
    kinds = (*WEIGHTED, *BATCH_NORMS)
    return [m for m in group.members if isinstance(m.module, kinds) and getattr(m.module, "weight", None) is not None]


def _count_sparse(model: nn.Module, groups: Sequence[Group]) -> int:
    return sum(int((squares < _SMALL * squares.max()).sum()) for squares in (_block_squares(model, g) for g in groups))
