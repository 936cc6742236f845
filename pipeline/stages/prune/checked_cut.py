"""Finding what can be cut in a network, and cutting it with a proof that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.stages.prune import proof
from edgewise.stages.prune.blocks import Lessons, Request, connected_sets, couple_channels, follow_all
from edgewise.stages.prune.channels import WEIGHTED, channels_of
from edgewise.stages.prune.coupling import Alone, Coupling, Cut, Group, Removed, cut_channels
from edgewise.stages.prune.labels import Flow

if TYPE_CHECKING:
    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings


class WrongCutError(StageError):
    """A cut did not give what the network gives without the channels."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = reasons
        """Group -> what is wrong with its cut."""
        listing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"the network mixes channels in a way that pruning does not see: {listing}; name them in keep")


def cut_and_check(model: nn.Module, groups: Sequence[Group], removed: Removed, ctx: Context) -> None:
    """Cut ``model`` in place, and make sure that it computes what it did with the removed channels ignored.

    Raises WrongCutError, which names the groups, where it does not, or does not run; ``model`` is then as it was.
    """
    bench = proof.own_bench(copy.deepcopy(model), _noise_images(model, ctx.input_shape, 2))
    problem = bench.problem(groups, removed)
    if problem is None:
        cut_channels(model, groups, removed)
        return
    group_numbers = [number for number, blocks in enumerate(removed) if blocks]
    wrong = {
        groups[number].name: reason
        for number in group_numbers
        if (reason := bench.problem([groups[number]], [removed[number]])) is not None
    }
    raise WrongCutError(wrong or {groups[group_numbers[-1]].name: f"together with others {problem}"})


class Groups:
    """The groups of a network while it is cut, step by step. One whose cut turns out wrong is left alone from then on."""

    def __init__(self, model: nn.Module, how: Settings, ctx: Context) -> None:
        self.model = model
        """Cut in place."""
        self._how, self._ctx = how, ctx
        self._refused: dict[str, str] = {}
        self._known: Coupling | None = None
        self.widths: Mapping[str, int] = {group.name: group.width for group in self.now.groups}
        """Of every group before the first cut."""
        self.left = dict(self.widths)
        """Of every group, as the network now is."""
        self.alone = self.now.alone
        """Layer -> why its output channels stay, all or some."""

    @property
    def channels(self) -> int:
        """Of all groups, as the network now is."""
        return sum(self.left.values())

    @property
    def now(self) -> Coupling:
        """The groups as the network now is. Raises StageError where there is none."""
        if self._known is None:
            self._known = find_groups(self.model, self._how, self._ctx)
        return without_groups(self._known, self._refused)

    def cut(self, plan: Callable[[], Cut]) -> Cut:
        """Cut what ``plan``, made from ``now``, says; where a group's cut is wrong, plan anew without that group."""
        while True:
            try:
                removal = plan()
                cut_and_check(self.model, *removal, self._ctx)
            except WrongCutError as error:
                self._refused |= error.reasons
                self._ctx.note(f"left alone: {error}")
                self.alone = {**self.alone, **self.now.alone}
            else:
                self._known = None
                for group, blocks in zip(*removal, strict=True):
                    self.left[group.name] = group.width - group.block_size * len(blocks)
                return removal


def without_groups(coupling: Coupling, refused: Mapping[str, str]) -> Coupling:
    """``coupling`` without the named groups; raises StageError where none is left."""
    if not refused:
        return coupling
    groups = tuple(group for group in coupling.groups if group.name not in refused)
    alone = dict(coupling.alone)
    for group in coupling.groups:
        if group.name in refused:
            alone |= _makers(group, f"a cut of them was wrong: {refused[group.name]}")
    return _not_empty(Coupling(groups=groups, alone=alone))


def _makers(group: Group, reason: str) -> dict[str, Alone]:
    return {
        member.name: Alone(width=int(channels_of(member.module, "out")), stay=member.channels.numel(), reason=reason)
        for member in group.members
        if member.side == "out" and isinstance(member.module, WEIGHTED)
    }


def find_groups(model: nn.Module, how: Settings, ctx: Context) -> Coupling:
    """The groups of ``model`` (in eval mode) that ``how`` allows to prune; raises StageError where there is none."""
    return trace_for(model, how.keep, ctx, shortcuts=how.shortcuts)


def trace_for(model: nn.Module, keep: Sequence[str], ctx: Context, *, shortcuts: bool = True) -> Coupling:
    """The groups of ``model`` (in eval mode), but for the outputs of the layers in ``keep`` and, without ``shortcuts``, of
    those that are added to each other. Each was tried: a cut of it gives what the network gives without the channels.

    Raises StageError for a layer that does not exist, and where no group is left.
    """
    unknown = sorted(set(keep) - {name for name, _ in model.named_modules()})
    if unknown:
        raise StageError(f"keep names layers that the network does not have: {', '.join(unknown)}")
    request = Request(classifier=ctx.spec.classifier, keep=keep, shortcuts=shortcuts)
    coupling = _prove_groups(model, _least_shape(model, ctx.input_shape), request)
    return _not_empty(coupling)


def _not_empty(coupling: Coupling) -> Coupling:
    if not coupling.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in coupling.left_alone.items())
        raise StageError(f"no layer of this network can be pruned: {reasons}")
    return coupling


def _prove_groups(model: nn.Module, shape: tuple[int, ...], request: Request) -> Coupling:
    """The groups whose cut is right. One that is not is tried with its channels counted in groups, then left alone."""
    example = _noise_images(model, shape, 1)
    flow, idle = follow_all(model, example)
    bench = proof.drawn_bench(model, _noise_images(model, shape, 3))
    learnt = _Learnt(flow)
    while True:
        coupling = couple_channels(model, flow, request, idle, learnt.lessons)
        wrong = proof.wrong_group(bench, coupling.groups)
        if wrong is None:
            return coupling
        learnt.add(coupling.groups[wrong[0]], wrong[1])


@dataclass
class _Learnt:
    """What is known after some trials."""

    flow: Flow
    lessons: Lessons = field(default_factory=Lessons)

    def add(self, group: Group, reason: str) -> None:
        """``group`` was cut wrongly: it is counted otherwise, or it stays."""
        labels = frozenset().union(*group.labels) - {0}
        level = max(self.lessons.level.get(label, 0) for label in labels) + 1
        while level <= len(self.flow.regrouped):
            family = self._family(labels, level)
            if family:
                self.lessons = replace(self.lessons, level={**self.lessons.level, **dict.fromkeys(family, level)})
                return
            level += 1
        words = sorted({self.flow.passed[label] for label in labels if label in self.flow.passed})
        where = f" (they pass {', '.join(words[:3])})" if words else ""
        notes = dict.fromkeys(labels, f"a cut of them would be wrong{where}: {reason}")
        self.lessons = replace(self.lessons, refused={**self.lessons.refused, **notes})

    def _family(self, labels: frozenset[int], level: int) -> frozenset[int]:
        """All that are counted in groups with these labels, and they; none where these are not counted so."""
        pairs = self.flow.regrouped[level - 1].numpy()
        families = connected_sets(self.flow.labels + 1, pairs)
        ours = np.isin(families, families[sorted(labels)])
        in_family = np.isin(np.arange(len(families)), pairs)
        return frozenset(np.flatnonzero(ours).tolist()) if (ours & in_family).any() else frozenset()


def _least_shape(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A smaller image that the network takes too, with as many logits; ``shape`` where there is none."""
    if max(shape[1:]) <= proof.SMALL:
        return shape
    factor = proof.SMALL / max(shape[1:])
    small = (shape[0], *(max(32, round(side * factor)) for side in shape[1:]))
    try:
        with torch.no_grad():
            logits = [model(_noise_images(model, one, 1)).shape for one in (small, shape)]
    except Exception:  # the user's code may raise anything
        return shape
    return small if logits[0] == logits[1] else shape


def _noise_images(model: nn.Module, shape: tuple[int, ...], images: int) -> Tensor:
    """Random images [N, C, H, W] where the model lies, the same ones every time."""
    weight = next(model.parameters())
    noise = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=weight.device, dtype=weight.dtype)
