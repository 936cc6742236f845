"""``edgewise store``: what is kept of finished steps, how much room it takes, and room again."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgewise.commands.console import PASSED, add_command, print_json
from edgewise.errors import RequestError
from edgewise.report.plain import escape_cell

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.store.contents import Kept


def add_parser(commands: Any) -> None:
    """``store list|size|trim``."""
    parser = add_command(commands, "store", "the results that are kept: list, size, trim", show_store)
    parser.add_argument("what", choices=("list", "size", "trim"))
    parser.add_argument(
        "--keep", metavar="SIZE", help="trim: to at most so much, as 10GB, the least recently used first"
    )
    parser.add_argument("--older", metavar="AGE", help="trim: what was not used for so long, as 12h, 30d or 4w")


def show_store(options: argparse.Namespace) -> int:
    """Print the entries or their sizes, or what was removed."""
    from edgewise.store.contents import bytes_of, list_entries, seconds_of, trim_store
    from edgewise.store.entries import store_folder

    root = store_folder()
    if options.what != "trim":
        if options.keep or options.older:
            raise RequestError("--keep and --older belong to 'store trim'; leave them out")
        entries = list_entries(root)
    elif not options.keep and not options.older:
        raise RequestError("'store trim' wants --keep SIZE, --older AGE or both; nothing was removed")
    else:
        keep = bytes_of(options.keep) if options.keep else None
        entries = trim_store(root, keep, seconds_of(options.older) if options.older else None)
    if options.json:
        print_json(
            {"store": str(root), "bytes": sum(entry.bytes for entry in entries), "entries": list(map(asdict, entries))}
        )
        return PASSED
    from rich.console import Console

    console = Console(highlight=False)
    if options.what == "list" and entries:
        console.print(entry_table(entries))
    if options.what == "size" and entries:
        console.print(by_kind(entries))
    word = "removed from" if options.what == "trim" else "in"
    console.print(
        f"{len(entries)} entries, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB {word} {escape_cell(str(root))}"
    )
    return PASSED


def entry_table(entries: Sequence[Kept]) -> Table:
    """One line an entry."""
    table = _empty_table("what", "MB", "computed in", "last used", "key")
    for entry in entries:
        age = (time.time() - entry.used) / 86_400
        table.add_row(
            escape_cell(entry.what),
            f"{entry.bytes / 1e6:.2f}",
            f"{entry.seconds:.0f} s",
            f"{age:.1f} d ago",
            entry.key[:12],
        )
    return table


def by_kind(entries: Sequence[Kept]) -> Table:
    """One line a kind of entries, the largest first."""
    count, size = Counter(entry.what for entry in entries), Counter[str]()
    for entry in entries:
        size[entry.what] += entry.bytes
    table = _empty_table("what", "entries", "MB")
    for what, total in size.most_common():
        table.add_row(escape_cell(what), str(count[what]), f"{total / 1e6:.2f}")
    return table


def _empty_table(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table
