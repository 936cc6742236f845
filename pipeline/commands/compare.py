"""``edgewise compare``: what a change costs, by the same statistics as a run's gates; for a person or for CI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.verify.comparison import Comparison


def add_parser(commands: Any) -> None:
    """``compare A B``."""
    parser = add_command(commands, "compare", "two runs, two report.json or two files: is B worse than A?", compare)
    parser.add_argument("a", type=Path, metavar="A", help="a run's folder, its report.json, or a written file")
    parser.add_argument("b", type=Path, metavar="B", help="the same, of the change")
    parser.add_argument("--data", metavar="D", help="run two files on this data set: reader or reader:PATH")
    parser.add_argument("--max-drop", type=float, default=0.01, help="top-1 that B may lose (default 0.01, one point)")
    parser.add_argument("--max-growth", type=float, default=0.01, help="share of bytes that B may add (default 0.01)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a pair of files; 0: none (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a comment")


def compare(options: argparse.Namespace) -> int:
    """Print B against A; 1 where B is certainly worse in anything."""
    from edgewise.errors import RequestError
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    from edgewise.verify.comparison import Allowed, compare_paths, markdown_of

    if options.json and options.markdown:
        raise RequestError("--json and --markdown exclude each other; ask for one of the two")
    tolerances = Allowed(
        max_drop=options.max_drop, max_growth=options.max_growth, seconds=options.seconds, threads=options.threads
    )
    comparison = compare_paths(options.a, options.b, tolerances, options.data)
    if options.json:
        print_json(comparison.to_json())
    elif options.markdown:
        print("\n".join(markdown_of(comparison)))
    else:
        _print_table(comparison)
    return FAILED if comparison.worse else PASSED


def _print_table(comparison: Comparison) -> None:
    import sys

    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    console.print(_comparison_table(comparison))
    console.print(f"{comparison.b} is {'worse' if comparison.worse else 'not worse'} than {comparison.a}.")


def _comparison_table(comparison: Comparison) -> Table:
    from rich import box
    from rich.table import Table

    from edgewise.measure.compared import WORSE

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("file", "", "", "why"):
        table.add_column(title, no_wrap=title != "why")
    for row in comparison.rows():
        table.add_row(*row, style="red" if row[2] in WORSE else None)
    return table
