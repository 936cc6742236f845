"""How far long work is, how fast it goes, and how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from edgewise.report.numbers import significant


@dataclass
class Pace:
    """How far something is, and how fast it goes."""

    total: int
    count: int | None = None
    """Images that all items hold together."""
    done: int = 0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Of the items that are done."""
        return self.done / self.total

    @property
    def rate(self) -> str:
        """Images a second; empty where they are not counted."""
        return f"{significant(self.share * self.count / self.seconds)} images/s" if self.count and self.seconds else ""

    def __str__(self) -> str:
        seconds = self.seconds * (1 - self.share) / self.share
        rate = f", {self.rate}" if self.rate else ""
        return f"{self.share:.0%} after {duration_text(self.seconds)}{rate}, about {duration_text(seconds)} left"


def duration_text(seconds: float) -> str:
    """Seconds as people read them: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
