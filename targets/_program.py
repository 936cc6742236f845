"""What every target wants of a captured program before it lowers it."""

from __future__ import annotations

import copy

import torch
from torch.export import ExportedProgram

from targets import Packaging, SizeKind, TargetError
from targets._quiet import quiet

_aten = torch.ops.aten
_DROPOUTS = frozenset(
    {_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default, _aten.alpha_dropout.default}
)


def as_captured(packaging: Packaging, target: str, sizes: frozenset[SizeKind] = frozenset({"fixed"})) -> None:
    """Raise TargetError where a file is wanted otherwise than ``target`` can write it; ``sizes``: the kinds it can."""
    if packaging.precision is not None:
        raise TargetError(
            f"target {target!r} writes no file with precision {packaging.precision}; leave it out for this target"
        )
    if packaging.sizes is not None and packaging.sizes.kind not in sizes:
        raise TargetError(
            f"target {target!r} writes no file for {packaging.sizes.kind} image sizes, only {' or '.join(sorted(sizes))}"
        )


def for_inference(program: ExportedProgram) -> ExportedProgram:
    """A copy of ``program`` without its idle dropouts, which some exporters turn into copies that break fusion.

    Raises TargetError for a program that was captured in training mode.
    """
    if not any(node.target in _DROPOUTS for node in program.graph.nodes):
        return program
    with quiet(messages=(r"`isinstance\(treespec, LeafSpec\)` is deprecated",)):
        program = copy.deepcopy(program)
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target not in _DROPOUTS:
            continue
        source, probability, training = node.args
        if training and probability:
            raise TargetError(
                f"wanted a program captured for inference, found the active dropout {node.name} "
                f"(p={probability}); call eval() on the model, or switch the captured graph, before exporting"
            )
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    program.graph_module.recompile()
    return program
