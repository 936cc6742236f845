"""The image sizes that files are to accept: what was asked for, and whether the network and the targets can do it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.targets import Sizes

if TYPE_CHECKING:
    pass


Size = tuple[int, int]


def with_main_size_first(sizes: Sizes, own: Size) -> Sizes:
    """``sizes`` with the one to train, judge and time at first; ``own`` is the data's, taken where a range names none.

    Raises RequestError for sizes that are none.
    """
    if not sizes.choices or min(side for size in sizes.choices for side in size) < 1:
        raise RequestError(
            f"wanted image sizes of at least 1×1, found {', '.join(map(show_size, sizes.choices)) or 'none'}"
        )
    main = own if sizes.ranged and len(sizes.choices) == 2 and accepts_size(sizes, own) else sizes.choices[0]
    return dataclasses.replace(sizes, choices=tuple(dict.fromkeys((main, *sizes.choices))))


def accepts_size(sizes: Sizes, size: Size) -> bool:
    """Whether a file for ``sizes`` takes images of ``size``."""
    if not sizes.ranged:
        return size in sizes.choices
    (low, high), (narrow, wide) = sizes.heights, sizes.widths
    return low <= size[0] <= high and narrow <= size[1] <= wide


def sizes_to_try(sizes: Sizes | None) -> tuple[Size, ...]:
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


def show_size(size: Size) -> str:
    """``224×224``: height by width."""
    return f"{size[0]}×{size[1]}"


def open_sides(sizes: Sizes | None, sides: tuple[int, int]) -> dict[int, Any]:
    """The input's dimensions that a capture leaves open, for ``torch.export``; ``sides``: which are height and width."""
    import torch

    if sizes is None or sizes.kind == "fixed":
        return {}
    bounds = zip(sides, (sizes.heights, sizes.widths), strict=True)
    # DYNAMIC and not a named Dim: that one wants every condition proven, such as that the last window of a pooling
    # rounded up starts inside the image, which holds always and which the solver cannot see. ``check`` tries them.
    return {side: torch.export.Dim.DYNAMIC(min=low, max=high) for side, (low, high) in bounds if low < high}
