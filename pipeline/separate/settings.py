"""The checks of the substitution's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from pipeline.errors import RequestError
from pipeline.recipe import in_range
from pipeline.separate.forms import Into

if TYPE_CHECKING:
    from pipeline.separate import Separate

Init = Literal["outputs", "kernel", "fresh"]


def check(stage: Separate) -> None:
    """Raise RequestError for a value that cannot be."""
    for name, choices in (("init", get_args(Init)), ("into", get_args(Into))):
        if getattr(stage, name) not in choices:
            raise RequestError(f"{name} must be one of {', '.join(choices)}, found {getattr(stage, name)!r}")
    in_range("rank", stage.rank, 1, 121)
    in_range("share", stage.share, 0.01, 1)
    in_range("sweeps", stage.sweeps, 0, 1000)
    in_range("images", stage.images, 2, 1_000_000)
    in_range("positions", stage.positions, 64, 10_000_000)
    in_range("max_error", stage.max_error, 0, 10)
    in_range("recover_steps", stage.recover_steps, 0, 10_000_000)
    in_range("recover_lr", stage.recover_lr, 1e-12, 100)
    in_range("recover_batch", stage.recover_batch, 2, 1_000_000)
    if stage.max_layers is not None:
        in_range("max_layers", stage.max_layers, 1, 1_000_000)
    if stage.max_drop is not None:
        in_range("max_drop", stage.max_drop, 0, 1)
    if stage.into != "depthwise" and stage.rank != 1:
        raise RequestError(f"rank belongs to into='depthwise'; with {stage.into!r} set share, found rank={stage.rank}")
    both = sorted(set(stage.layers or ()) & set(stage.keep))
    if both:
        raise RequestError(f"layers and keep both name {', '.join(both)}; name each layer in one of them")
