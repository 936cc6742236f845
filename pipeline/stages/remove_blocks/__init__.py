"""The stage that removes whole blocks, so that what is left is a shallower network.

Cutting widths leaves every layer's call and a shortcut's traffic in place; a block that is gone costs nothing at all
(Ding et al. 2021, arXiv 2101.03697; Wang et al. 2023, PRACTISE, arXiv 2202.05416: for time, blocks before filters).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewise.stage import Context, Traits, in_range
from edgewise.stages.remove_blocks.settings import Budget

if TYPE_CHECKING:
    from torch import nn


__all__ = ["RemoveBlocks"]


@dataclass(frozen=True, kw_only=True)
class RemoveBlocks:
    """Removes blocks whose shortcut can stand alone, and runs of layers that keep their input's shape.

    Exactly one of ``latency``, ``milliseconds``, ``count`` and ``blocks`` is given. Time is that of a float file of the
    recipe's declared runtime at batch 1.
    """

    latency: float | None = None
    """Share of the measured time to keep, on the declared runtime."""
    milliseconds: float | None = None
    """The time of one call on the declared runtime, on this machine."""
    count: int | None = None
    """So many blocks go."""
    blocks: tuple[str, ...] = ()
    """These go, by the names that the plan gives them."""
    keep: tuple[str, ...] = ()
    """These stay."""
    images: int = 512
    """Calibration images on which it is read what a removal loses."""
    reconstruct: int = 0
    """Training images on which the layers that are left are fitted anew to answer as they did; 0: they stay."""
    recover_steps: int = 0
    """Training steps, after that, in which all that is left learns to answer as it did behind each block; 0: none."""
    recover_lr: float = 3e-3
    """Their learning rate at the start."""
    recover_batch: int = 128
    """Images per step."""
    reestimate: int = 1024
    """Training images on which batch norms are estimated anew where nothing is reconstructed; 0: they stay."""

    def __post_init__(self) -> None:
        in_range("RemoveBlocks.recover_batch", self.recover_batch, 2, 1_000_000)
        for name in ("reconstruct", "recover_steps", "reestimate"):
            in_range(f"RemoveBlocks.{name}", getattr(self, name), 0, 100_000_000)
        in_range("RemoveBlocks.recover_lr", self.recover_lr, 1e-12, 100)
        self.budget  # noqa: B018 - refuses what does not go together

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A shallower copy of ``model``, which carries the surgery that made it.

        Raises StageError where no block can be removed and where the budget cannot be met, RequestError for blocks that
        the network does not have.
        """
        from edgewise.stages.remove_blocks.choose import choose_blocks
        from edgewise.stages.remove_blocks.plan import without_blocks
        from edgewise.stages.remove_blocks.refit import refit_network

        whole = copy.deepcopy(model).eval().to(ctx.device)
        plan = choose_blocks(whole, self.budget, ctx)
        ctx.note(plan.summary)
        ctx.fact("removed_blocks", plan.to_json())
        shallower = without_blocks(whole, plan.gone)
        refit_network(shallower, whole, plan, self, ctx)
        return shallower.to(next(model.parameters()).device).train(model.training)

    @property
    def budget(self) -> Budget:
        """What goes."""
        return Budget(
            latency=self.latency, milliseconds=self.milliseconds, count=self.count, blocks=self.blocks, keep=self.keep,
            images=self.images,
        )  # fmt: skip

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(cuts=True, times=not self.blocks)
