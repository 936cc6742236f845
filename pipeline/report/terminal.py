"""The report in a terminal: one line a row, the reasons below."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.report import numbers
from edgewise.report.classes import class_lines
from edgewise.report.devices import DeviceRow, ratio_words, time_words
from edgewise.report.document import Report
from edgewise.report.rows import Row, Verdict
from edgewise.report.summary import SYMBOLS, WORDS, coverage_note, estimate_lines, row_labels, summarize, timing_note

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table


_STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "not-checked": "yellow"}
_WIDE = 98
"""Columns from which the verdict is spelt out."""
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "–": "-", "±": "~", "Δ": "d", "×": "x", "−": "-", "━": "-", "─": "-", "…": "."}
)


def terminal_table(report: Report, path: Path | None = None) -> RenderableType:
    """What a terminal shows of ``report``: a Rich renderable that fits 80 columns, and any more there are.

    ``path``: where the full report lies, named in the last line.
    """
    return _Shown(report, path)


@dataclass(frozen=True)
class _Shown:
    report: Report
    path: Path | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        plain = options.ascii_only
        summary = summarize(self.report)
        yield _row_table(self.report.rows, options.max_width >= _WIDE, plain)
        yield from _reasons(self.report.rows, plain)
        yield Text(_clean_text(f"\n{SYMBOLS[summary.verdict]} {summary.title}.", plain), style=_STYLES[summary.verdict])
        if summary.best:
            yield Text(_clean_text(summary.best, plain))
        if self.report.recommended:
            lines = "".join(f"\n  {entry}." for entry in self.report.recommended)
            yield Text(_clean_text(f"Recommended files:{lines}", plain))
        if advice := self.report.advice(str(self.path.parent) if self.path else ""):
            yield Text(_clean_text(f"What to do next. {advice}", plain))
        names = list(zip(self.report.rows, row_labels(self.report.rows), strict=True))
        if lines := "".join(f"\n  {line}" for line in class_lines(names)):
            yield Text(_clean_text(f"By class:{lines}", plain), style="dim")
        for note in (coverage_note(self.report.rows), timing_note(self.report.rows), *estimate_lines(self.report.rows)):
            if note:
                yield Text(_clean_text(note, plain), style="dim")
        if self.report.devices:
            yield Text()
            yield device_table(self.report.devices, plain)
            yield from _device_reasons(self.report.devices, plain)
        if self.path is not None:
            yield Text(_clean_text(f"Report: {self.path}", False), overflow="fold", style="bold")


def _row_table(rows: Sequence[Row], wide: bool, plain: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.ASCII2 if plain else box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if wide else 0, 0, 0),
    )
    table.add_column("step, file", no_wrap=True, overflow="ellipsis", min_width=10)
    for title in ("top-1 %", "Δ pt", "params", "MACs", "bytes", "ms", "ratio"):
        table.add_column(_clean_text(title, plain), justify="right", no_wrap=True)
    table.add_column("grade", no_wrap=True)
    table.add_column("verdict" if wide else "", no_wrap=True)
    for row, name, following in zip(rows, row_labels(rows), (*rows[1:], None), strict=False):
        verdict = f"{SYMBOLS[row.verdict]} {WORDS[row.verdict]}" if wide else SYMBOLS[row.verdict]
        last_step = following is not None and row.target is None and following.target is not None
        cells = [
            Text(_clean_text(cell, plain))
            for cell in (name, *_accuracy(row), *_cost_cells(row), row.verification or "")
        ]
        table.add_row(*cells, Text(_clean_text(verdict, plain), style=_STYLES[row.verdict]), end_section=last_step)
    return table


def _accuracy(row: Row) -> tuple[str, str]:
    if row.accuracy is None:
        return "–", "–"
    top1 = f"{numbers.percent(row.accuracy.top1)} ±{numbers.half_width(row.accuracy.ci95)}"
    return top1, "" if row.step == "baseline" else numbers.points(row.accuracy.vs_baseline.delta)


def _cost_cells(row: Row) -> tuple[str, ...]:
    counts = (
        numbers.count(row.params),
        numbers.count(row.macs),
        numbers.size(row.bytes).removesuffix("B").replace(" ", ""),
    )
    if row.latency is None:
        return (*counts, "–", "–")
    return (*counts, numbers.significant(row.latency.p50_ms), numbers.ratio(row.latency.ratio_to_baseline))


def _reasons(rows: Sequence[Row], plain: bool) -> Iterator[RenderableType]:
    """Why each row that did not pass did not, its continuation lines indented."""
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 1))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for row, name in zip(rows, row_labels(rows), strict=True):
        if row.verdict != "pass" and row.reason:
            mark = Text(_clean_text(SYMBOLS[row.verdict], plain), style=_STYLES[row.verdict])
            lines.add_row(mark, Text(_clean_text(f"{name}: {row.reason}", plain)))
    if lines.row_count:
        yield Text()
        yield lines


def device_table(rows: Sequence[DeviceRow], plain: bool = False) -> Table:
    """One line a device and file: accuracy against the host's, time against the device's own baseline file."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", overflow="fold", min_width=8)
    table.add_column("file", overflow="fold", min_width=8)
    for title in ("top-1 %", "Δ host", "ms", "ratio", "memory"):
        table.add_column(_clean_text(title, plain), justify="right", overflow="fold")
    table.add_column("")
    for row in rows:
        cells = (
            row.device,
            row.file,
            *_device_accuracy(row),
            time_words(row),
            _ratio(row),
            numbers.size(row.peak_bytes),
        )
        mark = Text(_clean_text(SYMBOLS[row.verdict], plain), style=_STYLES[row.verdict])
        table.add_row(*(Text(_clean_text(cell, plain)) for cell in cells), mark)
    return table


def _device_accuracy(row: DeviceRow) -> tuple[str, str]:
    if row.accuracy is None:
        return "–", "–"
    return numbers.percent(row.accuracy.top1), numbers.points(row.accuracy.vs_baseline.delta)


def _ratio(row: DeviceRow) -> str:
    """Without its interval, which the page holds; marked where it shows no difference."""
    ratio = None if row.time is None else row.time.ratio_to_baseline
    if ratio is None:
        return "–"
    return numbers.ratio(ratio) + (" ns" if "no difference" in ratio_words(row) else "")


def _device_reasons(rows: Sequence[DeviceRow], plain: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    # Once for all files of a device that share it.
    files: dict[tuple[str, Verdict, str], list[str]] = {}
    for row in rows:
        files.setdefault((row.device, row.verdict, row.reason), []).append(row.file)
    for (device, verdict, reason), names in files.items():
        if verdict != "pass":
            text = f"{SYMBOLS[verdict]} {device}, {', '.join(names)}: {reason}"
            yield Text(_clean_text(text, plain), style=_STYLES[verdict])
    text = "On devices: top-1 on the bundle's images, Δ from the host's answers; ratio: to the device's own baseline file; ns: "
    text += "no difference shown. Emulators' and browsers' times never rank."
    yield Text(_clean_text(text, plain), style="dim")


def _clean_text(text: str, plain: bool) -> str:
    """Without control characters (a name must not steer the terminal), in ASCII signs where there are no others."""
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)
    return text.translate(_ASCII) if plain else text
