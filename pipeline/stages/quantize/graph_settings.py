"""Numbers that a captured graph carries beside its tensors, and a guard that they stay as the network has them.

Switching a captured graph between training and evaluation with torchao overwrites the probability of every dropout with
0.5 and batch norms' eps and momentum with their defaults, without a word (pytorch/ao#2980).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from edgewise.errors import StageError

Numbers = tuple[float | int | bool, ...]

_KINDS: Mapping[str, tuple[str, ...]] = {
    "dropout": ("p",),
    "feature_dropout": ("p",),
    "alpha_dropout": ("p",),
    "batch_norm": ("momentum", "eps"),
    "layer_norm": ("eps",),
    "group_norm": ("eps",),
    "leaky_relu": ("negative_slope",),
}
"""Operator -> its arguments that are settings of the network."""


def read_constants(graph: GraphModule) -> dict[str, list[Numbers]]:
    """Operator -> the settings of each of its occurrences, in the graph's order."""
    constants: dict[str, list[Numbers]] = {}
    for node in graph.graph.nodes:
        schema: Any = getattr(node.target, "_schema", None)
        kind = "" if schema is None else str(schema.name).split("::")[-1].rstrip("_")
        if kind in _KINDS:
            arguments = _read_arguments(node, schema)
            constants.setdefault(kind, []).append(tuple(arguments[name] for name in _KINDS[kind] if name in arguments))
    return constants


def _read_arguments(node: torch.fx.Node, schema: torch.FunctionSchema) -> dict[str, float | int | bool]:
    values = {}
    for index, argument in enumerate(schema.arguments):
        default = argument.default_value
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        if isinstance(value, bool | int | float):
            values[argument.name] = value
    return values


def check_unchanged(graph: GraphModule, before: Mapping[str, list[Numbers]]) -> None:
    """Raise StageError, naming each operator, where the settings are no longer those of ``before``."""
    after = read_constants(graph)
    wrong = [
        f"{kind} {', '.join(_KINDS[kind])}: {before.get(kind, [])} became {after.get(kind, [])}"
        for kind in sorted(before.keys() | after.keys())
        if before.get(kind, []) != after.get(kind, [])
    ]
    if wrong:
        raise StageError(
            f"settings of the captured graph were overwritten: {'; '.join(wrong)}. Do not switch a captured graph between "
            "training and evaluation; capture the network anew"
        )
