"""The image sizes that files are to accept: what was asked for, and whether the network and the targets can do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import RequestError
from targets import Sizes, Target

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

Size = tuple[int, int]


def asked(sizes: Sequence[Sequence[int]] | None, bounds: Sequence[int] | None) -> Sizes | None:
    """What the command line says: ``sizes``, each (height, width), and the ``bounds`` of a range of both sides."""
    listed = tuple((height, width) for height, width in sizes or ())
    if bounds is None:
        return Sizes(choices=listed) if listed else None
    low, high = bounds
    if low > high:
        raise RequestError(f"a range of image sizes goes from the smaller to the larger, found {low} to {high}")
    outside = [show(size) for size in listed if not all(low <= side <= high for side in size)]
    if outside:
        raise RequestError(f"the image size {outside[0]} lies outside the range {low} to {high}")
    return Sizes(choices=(*listed, (low, low), (high, high)), ranged=True)


def settled(sizes: Sizes, own: Size) -> Sizes:
    """``sizes`` with the one to train, judge and time at first; ``own`` is the data's, taken where a range names none.

    Raises RequestError for sizes that are none.
    """
    if not sizes.choices or min(side for size in sizes.choices for side in size) < 1:
        raise RequestError(f"wanted image sizes of at least 1×1, found {', '.join(map(show, sizes.choices)) or 'none'}")
    main = own if sizes.ranged and len(sizes.choices) == 2 and inside(sizes, own) else sizes.choices[0]
    return dataclasses.replace(sizes, choices=tuple(dict.fromkeys((main, *sizes.choices))))


def inside(sizes: Sizes, size: Size) -> bool:
    """Whether a file for ``sizes`` takes images of ``size``."""
    if not sizes.ranged:
        return size in sizes.choices
    (low, high), (narrow, wide) = sizes.heights, sizes.widths
    return low <= size[0] <= high and narrow <= size[1] <= wide


def untraced(sizes: Sizes | None) -> tuple[Size, ...]:
    """The sizes at which a file is tested besides the one it was captured at.

    Of a list the others; of a range both ends and a size in between whose sides differ.
    """
    if sizes is None:
        return ()
    others = sizes.choices[1:]
    if sizes.kind == "ranged":
        (low, high), (narrow, wide) = sizes.heights, sizes.widths
        others = ((low, narrow), (low + (high - low) // 3, narrow + 2 * (wide - narrow) // 3), (high, wide))
    return tuple(size for size in dict.fromkeys(others) if size != sizes.choices[0])


def show(size: Size) -> str:
    """``224×224``: height by width."""
    return f"{size[0]}×{size[1]}"


def open_sides(sizes: Sizes | None, sides: tuple[int, int]) -> dict[int, Any]:
    """The input's dimensions that a capture leaves open, for ``torch.export``; ``sides``: which are height and width."""
    import torch

    if sizes is None or sizes.kind == "fixed":
        return {}
    bounds = zip(("height", "width"), sides, (sizes.heights, sizes.widths), strict=True)
    return {side: torch.export.Dim(name, min=low, max=high) for name, side, (low, high) in bounds if low < high}


def check(network: nn.Module, name: str, image: Tensor, sizes: Sizes, wanted: Sequence[Target]) -> None:
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
    for size in (sizes.choices[0], *untraced(sizes)):
        _forward(network, name, image, size)
    if sizes.kind != "fixed":
        _same_for_all(network, name, image, sizes)


def _forward(network: nn.Module, name: str, image: Tensor, size: Size) -> None:
    import torch

    try:
        with torch.inference_mode():
            network.eval()(image.new_zeros(1, image.shape[1], *size))
    except Exception as error:
        raise RequestError(
            f"{name} does not take images of {show(size)}: {str(error).splitlines()[0]}. Ask for other sizes, or choose "
            "a model with a global pooling before its classifier"
        ) from error


def _same_for_all(network: nn.Module, name: str, image: Tensor, sizes: Sizes) -> None:
    from pipeline.quantize import export_graph

    try:
        graph = export_graph(network, tuple(image.shape[1:]), 1, sizes)
    except Exception as error:
        raise RequestError(
            f"{name} is not one computation for all the sizes asked for, so that no file can hold it: {_cause(error)}. Ask "
            "for one --input-size, or choose a model that treats every size alike"
        ) from error
    if grids := _fixed_grids(graph):
        raise RequestError(
            f"{name} pools every image to a grid of {grids[0]}, which takes other windows at every size; one file cannot "
            "hold them. Ask for one --input-size, or choose a model with a global pooling"
        )


def _cause(error: Exception) -> str:
    """The first condition on the size that the capture found, where it names one."""
    lines = [line.strip(" -.") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "generated guard" in line), lines[0])


def _fixed_grids(graph: GraphModule) -> list[str]:
    """The output sizes, above 1×1, of poolings whose input's size is open."""
    import torch

    pools = (torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten.adaptive_max_pool2d.default)
    found = []
    for node in graph.graph.nodes:
        if node.target in pools:
            open_input = any(not isinstance(side, int) for side in node.args[0].meta["val"].shape[2:])
            if open_input and set(node.args[1]) != {1}:
                found.append("×".join(map(str, node.args[1])))
    return found
