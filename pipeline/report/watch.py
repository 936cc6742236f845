"""What a person sees of a run while it goes on, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgewise.report.numbers import percent, significant
from edgewise.report.rows import Row

if TYPE_CHECKING:
    from rich.console import Console


_SYMBOLS = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "not-checked": "[yellow]–[/]"}


_SECONDS_BETWEEN = 20.0
_WORTH_TELLING = 5.0
"""Seconds that something took from which on its rate is worth a line in a log."""


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
        left = self.seconds * (1 - self.share) / self.share
        rate = f", {self.rate}" if self.rate else ""
        return f"{self.share:.0%} after {duration(self.seconds)}{rate}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as people read them: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Watch:
    """Prints progress to a Rich console on standard error; bars only where it is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.console: Console = Console(stderr=True, quiet=quiet, highlight=False)

    def track(
        self, items: Iterable[Any], description: str, total: int | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """Yield ``items`` behind a bar with the time left; in a log, a line now and then instead.

        ``count``: the images that all items hold together; their rate is told, in a log also at the end.
        """
        if not total:
            yield from items
        elif self.console.is_terminal:
            yield from self._behind_bar(items, description, total, count)
        else:
            yield from self._in_lines(items, description, total, count)

    def _behind_bar(self, items: Iterable[Any], description: str, total: int, count: int | None) -> Iterator[Any]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        pace = Pace(total, count)
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(description, total=count or total, rate="")
            for item in items:
                yield item
                pace.done += 1
                progress.update(task, completed=round(pace.share * (count or total)), rate=pace.rate)

    def _in_lines(self, items: Iterable[Any], description: str, total: int, count: int | None) -> Iterator[Any]:
        self.detail(description)
        pace = Pace(total, count)
        told = pace.started
        for item in items:
            yield item
            pace.done += 1
            if time.monotonic() - told > _SECONDS_BETWEEN and pace.done < total:
                told = time.monotonic()
                self.detail(f"{description}: {pace}")
        if count and pace.seconds > _WORTH_TELLING:
            self.detail(f"{description}: {count:,} images in {duration(pace.seconds)}, {pace.rate}")

    def say(self, text: str) -> None:
        """One line about what is being done."""
        self.console.print(text, markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """One line of lesser weight."""
        self.console.print(f"  {text}", style="dim", markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self.console.print(f"! {text}", style="yellow", markup=False, soft_wrap=True)

    def row(self, row: Row) -> None:
        """The outcome of a step or a file, in one line."""
        label = row.name or row.step
        head = f"{label}, {row.target}" if row.target else label
        parts = [f"top-1 {percent(row.accuracy.top1)}"] if row.accuracy else []
        if row.latency:
            parts.append(
                f"{row.latency.p50_ms:.3g} ms on {row.latency.on} ({row.latency.ratio_to_baseline:.2f} of baseline)"
            )
        parts.append(f"[dim]{row.seconds:.0f} s[/]")
        self.console.print(f"{_SYMBOLS[row.verdict]} {head}: {', '.join(parts)}", soft_wrap=True)
        if row.verdict == "fail":
            self.console.print(f"  {row.reason}", style="red", markup=False, soft_wrap=True)
