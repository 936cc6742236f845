"""What is written down while channels are followed: which layers they pass, which go together, which must stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgewise.stages.prune.channels import Side


@dataclass(frozen=True, eq=False)
class Touch:
    """One side of a layer, and the label of each of its channels."""

    name: str
    module: nn.Module
    side: Side
    labels: Tensor
    """int64 [channels]; 0 where a channel is no layer's."""


@dataclass(frozen=True, eq=False)
class Flow:
    """What was found in one pass."""

    touches: tuple[Touch, ...]
    """Of every layer, in order of execution, each side once."""
    labels: int
    """Labels are 1 … this."""
    ties: Tensor
    """int64 [n, 2]: labels that can only go together."""
    added: frozenset[int]
    """Labels that meet others in an addition."""
    stopped: Mapping[int, str]
    """Label -> why its channel must stay."""
    regrouped: tuple[Tensor, Tensor]
    """Ties to be tried where a network counts its channels in groups: int64 [n, 2] each, for channels at one place of
    every group, and for whole groups."""
    passed: Mapping[int, str]
    """Label -> the operation that a cut may upset, in words."""


@dataclass
class Notes:
    """What is written down on the way; shadows are float64, which holds whole numbers exactly and runs everywhere."""

    touches: dict[tuple[str, Side], Touch] = field(default_factory=dict)
    count: int = 0
    ties: list[Tensor] = field(default_factory=list)
    added: set[int] = field(default_factory=set)
    stopped: dict[int, str] = field(default_factory=dict)
    places: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    passed: dict[int, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    """Layer -> another that holds the same weights."""

    def fresh(self, channels: int, like: Tensor) -> Tensor:
        """New labels [channels]; a single channel gets none, because it can never go."""
        if channels == 1:
            return torch.zeros(1, dtype=torch.float64, device=like.device)
        first = self.count + 1
        self.count += channels
        return torch.arange(first, first + channels, dtype=torch.float64, device=like.device)

    def touch(self, name: str, module: nn.Module, side: Side, labels: Tensor) -> None:
        """Channels of a layer's side carry ``labels``; of one that runs again, both times' labels go together."""
        if name in self.shared:
            self.stop(labels, f"{name} shares its weights with {self.shared[name]}")
        note = Touch(name, module, side, labels.long())
        before = self.touches.setdefault((name, side), note)
        if before is not note:
            self.tie(before.labels.to(labels), labels)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Labels [channels] at the same places can only go together; one that is tied to nobody's has to stay."""
        self.ties.append(pairs_of(one, other))
        for here, there in ((one, other), (other, one)):
            self.stop(here[there == 0], "it goes with channels that no layer makes")

    def stop(self, labels: Tensor, reason: str) -> None:
        """The channels have to stay."""
        for label in distinct_labels(labels):
            self.stopped.setdefault(label, reason)

    def hint(self, labels: Tensor, words: str) -> None:
        """An operation that a cut may upset was passed."""
        for label in distinct_labels(labels):
            self.passed.setdefault(label, words)

    def merge(self, labels: Tensor, dims: Sequence[int], words: str) -> Tensor:
        """What is left of ``labels`` when an operation mixes along ``dims``, which stay with size 1.

        Labels that are mixed are tied; where nothing but one mixture is left, it is no channel any more.
        """
        if not dims or labels.numel() == 0:
            return labels
        largest = labels.amax(list(dims), keepdim=True)
        if not bool(((labels != largest) & (labels != 0)).any()):
            return largest
        self.ties.append(pairs_of(labels, largest.expand_as(labels)))
        if len(distinct_labels(largest)) == 1:
            self.stop(labels, f"all of them are mixed by {words}")
            return torch.zeros_like(largest)
        return largest

    def flow(self) -> Flow:
        """All of it, as a value."""
        return Flow(
            touches=tuple(self.touches.values()),
            labels=self.count,
            ties=stack_pairs(self.ties),
            added=frozenset(self.added),
            stopped=self.stopped,
            regrouped=(stack_pairs(self.places), stack_pairs(self.groups)),
            passed=self.passed,
        )


def pairs_of(one: Tensor, other: Tensor) -> Tensor:
    """Different labels, none of them 0, that stand at the same places: int64 [n, 2] on the CPU."""
    differ = (one != other) & (one != 0) & (other != 0)
    if not bool(differ.any()):
        return torch.zeros(0, 2, dtype=torch.int64)
    both = torch.stack([labels.expand(differ.shape)[differ] for labels in (one, other)], 1)
    base = float(both.max()) + 1
    pairs = torch.unique((both[:, 0] * base + both[:, 1]).long()).cpu()
    return torch.stack([pairs // int(base), pairs % int(base)], 1)


def stack_pairs(pairs: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, 2, dtype=torch.int64), *pairs])


def distinct_labels(labels: Tensor) -> list[int]:
    """The labels in a shadow, without 0."""
    return [label for label in torch.unique(labels).long().tolist() if label]


def varying_dims(labels: Tensor) -> list[int]:
    """The dimensions along which the labels differ."""
    return [
        dim for dim, size in enumerate(labels.shape) if size > 1 and bool((labels != labels.narrow(dim, 0, 1)).any())
    ]


def every_dim_but(one: int, dims: int) -> list[int]:
    """All of so many dimensions but one."""
    return [dim for dim in range(dims) if dim != one]
