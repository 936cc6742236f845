"""What a person sees of a run while it goes on, on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from edgewise.report.numbers import percent
from edgewise.report.plain import cell, printable
from edgewise.report.rows import Row

if TYPE_CHECKING:
    from rich.console import Console


_SYMBOLS = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "not-checked": "[yellow]–[/]"}


class Watch:
    """Prints progress to a Rich console on standard error; bars only where it is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.console: Console = Console(stderr=True, quiet=quiet, highlight=False)

    def track(self, items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        """Yield ``items`` behind a bar; in a log, one line instead."""
        if not total:
            yield from items
            return
        if not self.console.is_terminal:
            self.detail(description)
            yield from items
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)

    def say(self, text: str) -> None:
        """One line about what is being done."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """One line of lesser weight."""
        self.console.print(f"  {printable(text)}", style="dim", markup=False, soft_wrap=True)

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
        self.console.print(f"{_SYMBOLS[row.verdict]} {cell(head)}: {', '.join(parts)}", soft_wrap=True)
        if row.verdict == "fail":
            self.console.print(f"  {printable(row.reason)}", style="red", markup=False, soft_wrap=True)
