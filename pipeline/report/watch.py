"""What a person sees of a run while it goes on, on standard error."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from edgewise.errors import RequestError
from edgewise.report.numbers import percent
from edgewise.report.pace import Pace, duration_text
from edgewise.report.plain import escape_cell, escape_text
from edgewise.report.rows import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


_SYMBOLS = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "not-checked": "[yellow]–[/]"}


_SECONDS_BETWEEN = 20.0
_WORTH_TELLING = 5.0
"""Seconds that something took from which on its rate is worth a line in a log."""
_PATIENCE = 30.0
"""Seconds of silence after which a log, which has no bar, says that the work goes on."""
_AT_ONCE = 1.0
"""Seconds that something may take without a line in a log: what is quicker needs none."""


class Planned(Protocol):
    """One row to come, as the plan tells it."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...


class Watch:
    """Prints progress to a Rich console on standard error; bars only where it is a terminal.

    ``log``: a file that is told the same, each line with the time. Raises RequestError where it cannot be written.
    """

    def __init__(self, quiet: bool = False, log: Path | None = None) -> None:
        from rich.console import Console

        self.console: Console = Console(stderr=True, quiet=quiet, highlight=False)
        self._log = None if log is None else _open_log(log)
        self._steps: Sequence[Planned] = ()
        self._rows = 0
        self._worked = False
        self._started = self._last = time.monotonic()
        self._doing = self._untold = ""
        self._status: Status | None = None
        self._ended = threading.Event()
        self._reminder: threading.Thread | None = None

    def plan(self, lines: Sequence[str], steps: Sequence[Planned]) -> None:
        """What is going to be done; from here on every row tells its place among ``steps`` and the time left."""
        self._steps = steps
        for line in lines:
            self.say(line)
        self._worked, self._started = False, time.monotonic()
        self._start_reminder()

    @property
    def planned(self) -> bool:
        """Whether a plan was told."""
        return bool(self._steps)

    def close(self) -> None:
        """End the reminders and the log."""
        self._ended.set()
        self._rest()
        if self._log is not None:
            self._log.close()

    def begin(self, text: str) -> None:
        """What is begun: told at once on a terminal, in a log once it has taken a second, and then not again."""
        self._last, self._untold = time.monotonic(), text
        self._busy(text)
        self._start_reminder()

    def _start_reminder(self) -> None:
        if self._reminder is None and not self.console.is_terminal and not self.console.quiet:
            self._reminder = threading.Thread(target=self._remind, daemon=True)
            self._reminder.start()

    def _remind(self) -> None:
        while not self._ended.wait(0.25):
            if (text := self._untold) and time.monotonic() - self._last > _AT_ONCE:
                self._print(f"  {text} …", style="dim")
            if self._doing and time.monotonic() - self._last > _PATIENCE:
                self._print(
                    f"  … still {self._doing}, {time.monotonic() - self._started:.0f} s since the start", style="dim"
                )

    def track(
        self, items: Iterable[Any], description: str, total: int | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """Yield ``items`` behind a bar with the time left; in a log, a line now and then instead.

        ``count``: the images that all items hold together; their rate is told, in a log also at the end.
        """
        self._worked = self._worked or bool(total)
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

        self._rest()
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
        last = pace.started
        for item in items:
            yield item
            pace.done += 1
            if time.monotonic() - last > _SECONDS_BETWEEN and pace.done < total:
                last = time.monotonic()
                self.detail(f"{description}: {pace}")
        if count and pace.seconds > _WORTH_TELLING:
            self.detail(f"{description}: {count:,} images in {duration_text(pace.seconds)}, {pace.rate}")

    def say(self, text: str) -> None:
        """One line about what is being done."""
        self._print(text)
        self._busy(text)

    def detail(self, text: str) -> None:
        """One line of lesser weight."""
        self._print(f"  {text}", style="dim")
        self._busy(text)

    def settle(self) -> None:
        """Nothing of this process's own is going on: no reminder says that it does."""
        self._rest()
        self._doing = ""

    def _busy(self, text: str) -> None:
        """On a terminal something moves until the next line: nobody has to guess whether the work goes on."""
        self._worked, self._doing = True, text.rstrip(" …")
        if self.console.is_terminal and not self.console.quiet:
            self._rest()
            self._status = self.console.status(f"[dim]{escape_markup(self._doing[:60])}[/]")
            self._status.start()

    def _rest(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str, style: str = "", markup: bool = False) -> None:
        self._rest()
        self._last, self._untold = time.monotonic(), ""
        text = text if markup else escape_text(text)
        # A terminal breaks lines between words; a log keeps each whole.
        self.console.print(text, style=style, markup=markup, soft_wrap=not self.console.is_terminal)
        if self._log is not None and not self._log.closed:
            plain = re.sub(r"\[/?[a-z ]*\]", "", text) if markup else text
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {plain}\n")
            self._log.flush()

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self._print(f"! {text}", style="yellow")

    def row(self, row: Row) -> None:
        """The outcome of a step or a file, in one line."""
        head = f"{row.target} {row.precision or ''}".strip() if row.target else row.name or row.step
        parts = [f"top-1 {percent(row.accuracy.top1)} %"] if row.accuracy else []
        if row.latency:
            parts.append(
                f"{row.latency.p50_ms:.3g} ms on {row.latency.on} ({row.latency.ratio_to_baseline:.2f} of baseline)"
            )
        parts.append(f"[dim]{row.seconds:.0f} s{'' if self._worked or not self._steps else ', from the store'}[/]")
        self._print(
            f"{_SYMBOLS[row.verdict]} {self._place()}{escape_cell(head)}: {', '.join(parts)}{self._left()}", markup=True
        )
        self._worked, self._doing = False, ""
        if row.verdict == "fail":
            self._print(f"  {row.reason}", style="red")

    def _place(self) -> str:
        self._rows += 1
        return f"{self._rows} of {max(self._rows, len(self._steps))}  " if self._steps else ""

    def _left(self) -> str:
        """Time left overall: what is planned for the rest, and for each row of it what the plan left out until now (files
        written and timed, a slower machine); empty without a plan."""
        rest = self._steps[self._rows :]
        if not rest or not self._rows:
            return ""
        total = sum(step.seconds for step in self._steps[: self._rows])
        beyond = max(0.0, time.monotonic() - self._started - total) / self._rows
        seconds = sum(step.seconds for step in rest) + beyond * len(rest)
        if seconds < 1:
            return ""
        return (
            f"[dim], about {seconds:.0f} s left[/]" if seconds < 90 else f"[dim], about {seconds / 60:.0f} min left[/]"
        )


def _open_log(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write the log {path}: {error.strerror}; choose another with --log") from error


def escape_markup(text: str) -> str:
    """Text that Rich shows as it stands."""
    from rich.markup import escape

    return escape(text)
