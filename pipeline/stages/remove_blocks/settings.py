"""How much is to go."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.errors import RequestError, StageError
from edgewise.stage import in_range


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of ``latency``, ``milliseconds``, ``count`` and ``blocks``."""

    latency: float | None = None
    milliseconds: float | None = None
    count: int | None = None
    blocks: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    images: int = 512

    def __post_init__(self) -> None:
        ways = {"latency": self.latency, "milliseconds": self.milliseconds, "count": self.count}
        budgets = [name for name, value in ways.items() if value is not None] + ["blocks"] * bool(self.blocks)
        if len(budgets) != 1:
            expectation = "latency, milliseconds, count, blocks"
            raise RequestError(f"RemoveBlocks wants exactly one of {expectation}, found {', '.join(budgets) or 'none'}")
        if self.latency is not None and not 0 < self.latency < 1:
            raise RequestError(f"RemoveBlocks.latency must lie between 0 and 1, both excluded, found {self.latency:g}")
        if self.milliseconds is not None and not 0 < self.milliseconds < float("inf"):
            raise RequestError(f"RemoveBlocks.milliseconds must be above 0, found {self.milliseconds:g}")
        in_range("RemoveBlocks.count", 1 if self.count is None else self.count, 1, 1_000_000)
        in_range("RemoveBlocks.images", self.images, 2, 1_000_000)
        if both := sorted({*self.blocks} & {*self.keep}):
            raise RequestError(f"RemoveBlocks both removes and keeps {', '.join(both)}")

    def share(self, whole_ms: float) -> float | None:
        """The share of the time to keep of a network that takes ``whole_ms``; None where time is not limited."""
        if self.milliseconds is None:
            return self.latency
        if self.milliseconds >= whole_ms:
            raise StageError(f"wanted at most {self.milliseconds:.3g} ms; the network takes {whole_ms:.3g} ms already")
        return self.milliseconds / whole_ms
