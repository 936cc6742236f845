"""What a target's accelerated kernels take of a network, by operator and by share of its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import Node


@dataclass(frozen=True)
class Work:
    """One operator of a written file."""

    operator: str
    macs: int
    taken: bool
    """By the target's backend or, in an int8 file, by an int8 kernel."""


def coverage_shares(work: Iterable[Work]) -> dict[str, Any]:
    """The entry ``coverage`` of an artifact's facts; JSON types. A network without MACs leaves none outside."""
    work = list(work)
    total, outside = sum(item.macs for item in work), sum(item.macs for item in work if not item.taken)
    return {
        "macs": total,
        "undelegated_macs": outside,
        "undelegated_share": outside / total if total else 0.0,
        "by_operator": {name: _sum_macs(item for item in work if item.operator == name) for name in _names(work)},
    }


def _names(work: Iterable[Work]) -> list[str]:
    return sorted({item.operator for item in work})


def _sum_macs(work: Iterable[Work]) -> dict[str, int]:
    work = list(work)
    remaining = [item for item in work if not item.taken]
    return {
        "delegated": len(work) - len(remaining),
        "undelegated": len(remaining),
        "macs": sum(item.macs for item in work),
        "undelegated_macs": sum(item.macs for item in remaining),
    }


def node_macs(node: Node, operator: str) -> int:
    """MACs of a node of a captured graph whose shapes are known; 0 for what is no convolution and no product."""
    if operator == "convolution":
        # One use of every weight for each output position; transposed, for each input position.
        positions = _shape(node.args[0]) if node.args[6] else _shape(node)
        return convolution_macs(positions, _shape(node.args[1]))
    if operator == "linear":
        return prod(_shape(node)) * _shape(node.args[1])[-1]
    if operator in ("mm", "bmm", "matmul"):
        return prod(_shape(node)) * _shape(node.args[0])[-1]
    return prod(_shape(node)) * _shape(node.args[1])[-1] if operator == "addmm" else 0


def convolution_macs(positions: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """``positions``: a shape [N, C, ...] whose spatial sizes and batch count; groups are in the weight's shape."""
    return int(positions[0] * prod(positions[2:]) * prod(weight))


def _shape(value: object) -> tuple[int, ...]:
    example = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(int(size) for size in example.shape) if example is not None and hasattr(example, "shape") else (0,)
