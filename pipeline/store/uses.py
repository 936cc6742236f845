"""What a piece of work took from the store and what it computed: how much equal beginnings save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Uses:
    """Results by their keys, each with the seconds that it took when it was computed."""

    reused: dict[str, float] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, float]:
        """Counts and seconds as plain JSON types."""
        return {
            "reused": len(self.reused),
            "reused_seconds": round(sum(self.reused.values()), 3),
            "computed": len(self.computed),
            "computed_seconds": round(sum(self.computed.values()), 3),
        }


_current: ContextVar[Uses | None] = ContextVar("uses", default=None)


@contextlib.contextmanager
def count_uses() -> Iterator[Uses]:
    """Within the block, what this thread takes from any store is counted."""
    uses = Uses()
    token = _current.set(uses)
    try:
        yield uses
    finally:
        _current.reset(token)


def note_reused(key: str, seconds: float) -> None:
    """A result was taken from the store; one that the same work computed before is none that was saved."""
    uses = _current.get()
    if uses is not None and key not in uses.computed:
        uses.reused[key] = seconds


def note_computed(key: str, seconds: float) -> None:
    """A result was computed."""
    uses = _current.get()
    if uses is not None:
        uses.computed[key] = seconds
