"""What every target wants of a captured program before it lowers it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from edgewise.targets import Packaging, Precision, SizeKind, TargetError
from edgewise.targets._plain_operators import PLAIN
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers
from edgewise.targets._rewrite import rewrite_program

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
    fitting_sizes(packaging, target, sizes)


def fitting_sizes(packaging: Packaging, target: str, sizes: frozenset[SizeKind] = frozenset({"fixed"})) -> None:
    """Raise TargetError for image sizes of a kind that is not among the target's ``sizes``."""
    if packaging.sizes is not None and packaging.sizes.kind not in sizes:
        raise TargetError(
            f"target {target!r} writes no file for {packaging.sizes.kind} image sizes, only {' or '.join(sorted(sizes))}"
        )


def is_quantized(program: ExportedProgram) -> bool:
    """Whether the program holds quantize and dequantize nodes."""
    return any("quantized_decomposed" in str(node.target) for node in program.graph.nodes)


def chosen_precision(
    program: ExportedProgram, packaging: Packaging, target: str, offered: Sequence[Precision]
) -> Precision:
    """The precision to write; where none is asked for, int8 for a quantized program, else the first of ``offered``.

    Raises TargetError for a precision that the target does not write, or that the program was not captured for.
    """
    quantized, precision = is_quantized(program), packaging.precision
    if precision is None:
        return "int8" if quantized else offered[0]
    if precision not in offered and precision != "int8":
        raise TargetError(f"target {target!r} writes no {precision} file; choices: int8, {', '.join(offered)}")
    if quantized != (precision == "int8"):
        kind = "a quantized" if quantized else "a float"
        step = "leave the recipe's quantize out" if quantized else "give the recipe a quantize step"
        raise TargetError(f"target {target!r}: wanted a {precision} file, found {kind} network; {step}")
    return precision


def minimum_version(packaging: Packaging, target: str, choices: Sequence[str], usual: str) -> str:
    """The oldest version that must read the file. Raises TargetError for one that the target does not know."""
    version = packaging.minimum.get(target, usual)
    if version not in choices:
        raise TargetError(f"target {target!r} writes no file for {version!r}; choices: {', '.join(choices)}")
    return version


def find_image(program: ExportedProgram) -> Node:
    """The placeholder of the input, by its place: a copied graph calls one that has a built-in's name (``input``) otherwise
    than the signature does."""
    places = zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True)
    image: Node = next(node for node, spec in places if spec.kind is InputKind.USER_INPUT)
    return image


def open_sides(program: ExportedProgram) -> dict[int, Any] | None:
    """The input's dimensions that ``program`` leaves open, as ``torch.export`` takes them; None: it leaves none."""
    sides = {}
    for axis, side in enumerate(find_image(program).meta["val"].shape):
        if not isinstance(side, int):
            bounds = program.range_constraints[side.node.expr]
            sides[axis] = torch.export.Dim(f"side{axis}", min=int(bounds.lower), max=int(bounds.upper))
    return sides or None


def export_module(module: GraphModule, like: ExportedProgram) -> ExportedProgram:
    """``module``, which ``like`` was made to and changed, as a program with the same dimensions left open."""
    sides = open_sides(like)
    example = cast(tuple[Any, ...], like.example_inputs[0])
    return torch.export.export(module, example, dynamic_shapes=(sides,) if sides else None)


def for_inference(program: ExportedProgram) -> ExportedProgram:
    """``program`` in operators that every converter knows, and without its idle dropouts, which some exporters turn into
    copies that break fusion; a copy where it changes.

    Raises TargetError for a program that was captured in training mode.
    """
    program = rewrite_program(program, PLAIN)
    if not any(node.target in _DROPOUTS for node in program.graph.nodes):
        return program
    with quiet_loggers(messages=(LEAF_SPEC,)):
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
