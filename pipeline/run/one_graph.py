"""Whether one file can serve every image size that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError, first_line
from edgewise.targets import Sizes, Target

if TYPE_CHECKING:
    from torch import Tensor, nn
from edgewise.images.sizes import Size, open_sides, show_size, sizes_to_try


def check_sizes(network: nn.Module, name: str, image: Tensor, sizes: Sizes, wanted: Sequence[Target]) -> None:
    """Raise RequestError where a target has no such files, or the network does not take images of these sizes.

    ``image``: one normalised image [1, C, H, W] of the size to capture at. Takes seconds for several sizes: the network
    is captured with its sides left open, which is what tells whether one file can serve them all.
    """
    for target in wanted:
        if sizes.kind not in target.sizes:
            raise RequestError(
                f"target {target.name!r} writes no file for {sizes.kind} image sizes, only "
                f"{' or '.join(sorted(target.sizes))}; leave it out, or ask for one --input-size"
            )
    for size in (sizes.choices[0], *sizes_to_try(sizes)):
        _check_forward(network, name, image, size)
    if sizes.kind != "fixed":
        _same_for_all(network, name, image, sizes)


def _check_forward(network: nn.Module, name: str, image: Tensor, size: Size) -> None:
    import torch

    try:
        with torch.inference_mode():
            network.eval()(image.new_zeros(1, image.shape[1], *size))
    except Exception as error:
        raise RequestError(
            f"{name} does not take images of {show_size(size)}: {first_line(error)}. Ask for other sizes, or choose "
            "a model with a global pooling before its classifier"
        ) from error


def _same_for_all(network: nn.Module, name: str, image: Tensor, sizes: Sizes) -> None:
    import torch

    from edgewise.library_noise import quiet_capture
    from edgewise.network.regions import inline_regions

    blank, sides = image.new_zeros(1, *image.shape[1:]), open_sides(sizes, (2, 3))
    try:
        with quiet_capture():
            program = torch.export.export(
                network.eval(), (blank,), dynamic_shapes=(sides,), prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as error:
        raise _size_error(name, _cause(error)) from error
    graph = program.module(check_guards=False)
    inline_regions(graph)
    if reason := _narrower_range(program, sizes) or _other_computation(graph, blank, sizes):
        raise _size_error(name, reason)
    if grids := _fixed_grids(graph):
        raise RequestError(
            f"{name} pools every image to a grid of {grids[0]}, which takes other windows at every size; one file cannot "
            "hold them. Ask for one --input-size, or choose a model with a global pooling"
        )


def _size_error(name: str, why: str) -> RequestError:
    return RequestError(
        f"{name} is not one computation for all the sizes asked for, so that no file can hold it: {why}. Ask "
        "for one --input-size, or choose a model that treats every size alike"
    )


def _narrower_range(program: Any, sizes: Sizes) -> str | None:
    """How far the captured ``program`` reaches, where that is less than was asked for."""
    shape = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == _input_name(program))
    for side, (low, high) in zip(shape.meta["val"].shape[2:], (sizes.heights, sizes.widths), strict=True):
        if isinstance(side, int):
            reach = (side, side)
        else:
            bounds = program.range_constraints[side.node.expr]
            reach = (int(bounds.lower), int(bounds.upper))
        if reach[0] > low or reach[1] < high:
            return (
                f"from {reach[0]} to {reach[1]} it computes one thing, and another beyond, of {low} to {high} asked for"
            )
    return None


def _input_name(program: Any) -> str:
    (name,) = program.graph_signature.user_inputs
    return str(name)


def _other_computation(graph: nn.Module, blank: Tensor, sizes: Sizes) -> str | None:
    """The first accepted size at which a condition of the captured ``graph`` does not hold, and the condition.

    Without numbers (on the meta device) a graph tells shapes and conditions at once, so that every height and every
    width of a range is tried.
    """
    import torch

    from edgewise.library_noise import quiet_capture

    with quiet_capture():
        shapes_only = copy.deepcopy(graph).to("meta")
    for size in _sizes_to_try(sizes):
        try:
            shapes_only(torch.empty(1, blank.shape[1], *size, device="meta"))
        except RuntimeError as error:
            return f"at {show_size(size)}, {first_line(error)}"
    return None


def _sizes_to_try(sizes: Sizes) -> list[Size]:
    """A list's sizes; of a range every height at the smallest width, and every width at the smallest height."""
    if not sizes.ranged:
        return list(sizes.choices)
    (low, high), (narrow, wide) = sizes.heights, sizes.widths
    return [*((h, narrow) for h in range(low, high + 1)), *((low, w) for w in range(narrow + 1, wide + 1))]


def _cause(error: Exception) -> str:
    """What the capture says first."""
    lines = [line.strip(" -.") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0]


def _fixed_grids(graph: Any) -> list[str]:
    """The output sizes, above 1×1, of poolings whose input's size is open."""
    import torch

    pools = (torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten.adaptive_max_pool2d.default)
    reasons = []
    for node in graph.graph.nodes:
        if node.target in pools:
            open_input = any(not isinstance(side, int) for side in node.args[0].meta["val"].shape[2:])
            if open_input and set(node.args[1]) != {1}:
                reasons.append("×".join(map(str, node.args[1])))
    return reasons
