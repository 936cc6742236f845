"""A network of the user's, as it comes, written for each target and asked what the network is asked.

In float32, and in integers with ranges from a few images where the recipe quantizes: some operators have kernels for one
alone. What a converter lacks or gets wrong would otherwise end the run with its last step, after all training.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgewise.errors import RequestError
from edgewise.files.open import open_file
from edgewise.library_noise import quiet_capture
from edgewise.network.captured import Prepare, convert, export_graph
from edgewise.network.fold_norms import without_norms
from edgewise.network.graph_layers import module_name
from edgewise.network.where import line_clause, line_in_trace
from edgewise.stages.quantize import freeze_ranges
from edgewise.stages.quantize.calibrate import set_ranges
from edgewise.targets import Grid, Packaging, Target

_IMAGES = 2
"""Asked of a file; a reference evaluator answers few a second."""


@dataclass(frozen=True)
class _Kind:
    """What kind of file is tried."""

    words: str
    """Of it in a sentence, behind "a file"."""
    precision: Literal["float32"] | None
    tolerance: float
    """Of the largest answer."""


_FLOAT = _Kind("", "float32", 0.02)
"""float32 kernels stay far below, a wrong operator far above."""
_INTEGERS = _Kind(" in int8", None, 0.5)
"""What rounding does grows from layer to layer: only what is no answer at all is to be told here."""


def try_lowering(network: nn.Module, images: Tensor, target: Target, name: str) -> None:
    """Write ``network`` for ``target`` in float32 and compare its answers on the first of ``images`` [N, C, H, W].

    Raises RequestError with the layer and the line from which on it cannot be written or answers otherwise. A target
    that takes integers alone is not tried.
    """
    if target.integers_only:
        return
    images = images[:_IMAGES]
    kind = _FLOAT if "float32" in target.precisions else _Kind("", None, _FLOAT.tolerance)
    _refuse_faulty(export_graph(network, tuple(images.shape[1:]), 1), images, target, kind, name)


def try_integers(network: nn.Module, images: Tensor, grid: Grid, target: Target, name: str) -> None:
    """As ``try_lowering``, quantized on ``grid`` with the ranges of those images, beside PyTorch's own integers."""
    images = images[:_IMAGES]
    shape = (images.shape[1], images.shape[2], images.shape[3])
    prepared = Prepare(grid.to_json(), shape).capture(without_norms(network, images), 1)
    set_ranges(prepared, [image[None] for image in images], "minmax")
    freeze_ranges(prepared)
    _refuse_faulty(convert(prepared), images, target, _INTEGERS, name)


def _refuse_faulty(graph: GraphModule, images: Tensor, target: Target, kind: _Kind, name: str) -> None:
    fault = _find_fault(graph, images, target, kind)
    if fault is None:
        return
    node = _first_faulty(graph, lambda part: _find_fault(part, images, target, kind) is not None)
    way_out = f"leave --target {target.name} out"
    if kind is _INTEGERS:
        way_out += ", or deploy it without quantize"
    raise RequestError(f"{name} {fault}{_describe_place(node)}. Write that otherwise, or {way_out}")


def _find_fault(graph: GraphModule, images: Tensor, target: Target, kind: _Kind) -> str | None:
    """What is wrong with the file of ``graph``; None: nothing."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / f"trial{target.suffix}"
        try:
            with quiet_capture():
                program = torch.export.export(graph, (images[:1],))
            target.export(program, path, Packaging(precision=kind.precision))
            opened = open_file(target, path)
            if opened.runner is None:
                # A reference evaluator does not know every operator that the devices' own runtime does.
                refusal = f"gives a file{kind.words} for {target.name} that its runtime refuses: {opened.reason}"
                return refusal if target.load else None
            answers = torch.cat([opened.answer(image[None]).reshape(1, -1) for image in images])
        except Exception as error:
            return f"cannot be written{kind.words} for {target.name}: {_say_error(error)}"
        wanted = torch.cat([graph(image[None]).reshape(1, -1) for image in images])
    return _say_difference(answers, wanted, target.name, kind)


def _say_error(error: Exception) -> str:
    """The first line of the innermost cause: exporters wrap it in their advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _say_difference(answers: Tensor, wanted: Tensor, target: str, kind: _Kind) -> str | None:
    """Whether the file answers every image otherwise; one alone may lie on an edge of a step function."""
    if answers.shape != wanted.shape:
        return f"gives a file{kind.words} for {target} that answers {answers.shape[1]} numbers where the network answers {wanted.shape[1]}"
    scale = wanted.abs().amax().clamp_min(1e-12)
    apart = (answers - wanted).abs().amax(1) / scale
    if not bool(wanted.isfinite().all()) or bool((apart <= kind.tolerance).any()):
        return None
    return f"gives a file{kind.words} for {target} that answers otherwise, by {100 * float(apart.max()):.0f} % of the largest answer"


def _first_faulty(graph: GraphModule, is_faulty: Callable[[GraphModule], bool]) -> Node | None:
    """The operation up to which ``graph`` shows the fault and before which it does not, by halving."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and _is_float(node)]
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if is_faulty(_cut_after(graph, nodes[middle].name)):
            high = middle
        else:
            low = middle + 1
    return nodes[low] if low < len(nodes) else None


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _cut_after(graph: GraphModule, name: str) -> GraphModule:
    """A copy of ``graph`` that answers with the values of one operation, in a row."""
    own = copy.deepcopy(graph)
    nodes = {node.name: node for node in own.graph.nodes}
    (output,) = (node for node in own.graph.nodes if node.op == "output")
    with own.graph.inserting_before(output):
        row = own.graph.call_function(torch.ops.aten.flatten.using_ints, (nodes[name], 1))
    output.args = (row,)
    own.graph.set_codegen(torch.fx.graph.CodeGen())
    own.graph.eliminate_dead_code()
    own.recompile()
    return own


def _describe_place(node: Node | None) -> str:
    if node is None:
        return ""
    layer = module_name(node)
    what = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    line = line_clause(line_in_trace(str(node.meta.get("stack_trace") or "")))
    return f"; from {what}{f' of layer {layer}' if layer else ''}{line} on"
