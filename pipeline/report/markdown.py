"""Tables for pages of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a cell's text must hold no ``|`` of its own."""
    return [_table_line(head), f"|{'---|' * len(head)}", *map(_table_line, rows)]


def escape_cell(text: str) -> str:
    """Foreign text, as a backend's reason, as it can stand in a cell: one line, no longer than a reader follows."""
    return " ".join(text.split())[:240].replace("|", "\\|").replace("_", "\\_").replace("<", "&lt;")


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
