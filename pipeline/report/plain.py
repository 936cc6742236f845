"""Text for a terminal, whatever stands in a path or a file's own message."""

from __future__ import annotations


def escape_text(text: str) -> str:
    """``text`` with its lines, and escapes in place of whatever else would move a terminal's cursor or fool its reader."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def escape_cell(text: str) -> str:
    """The same for a table's cell, in which brackets are no markup."""
    from rich.markup import escape

    return escape(escape_text(text))
