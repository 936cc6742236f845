"""``edgewise report``: a report once more, from its report.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json, say


def add_parser(commands: Any) -> None:
    """``report DIR``."""
    parser = add_command(commands, "report", "the report again, from report.json", show_again)
    parser.add_argument("folder", type=Path, metavar="DIR")


def outcome_of(report: Any) -> int:
    """The exit status of a finished report."""
    return FAILED if any(row.verdict == "fail" for row in report.rows) else PASSED


def show(report: Any, as_json: bool, page: Path) -> None:
    """Print a report, as JSON or as a table."""
    if as_json:
        print_json(report.to_json())
        return
    from rich.console import Console

    from edgewise.report.terminal import table

    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table(report, page))


def show_again(options: argparse.Namespace) -> int:
    """Write the page once more, and print the table."""
    from edgewise.device.intake import take_in
    from edgewise.report.document import Report
    from edgewise.report.page import write_html

    report = Report.read(options.folder)
    sent = take_in(options.folder)
    if list(sent.rows) != report.devices:
        report.devices = list(sent.rows)
        report.write(options.folder)
    page = write_html(report, options.folder)
    show(report, options.json, page)
    for sentence in sent.refused:
        say(f"not taken in: {sentence}")
    return FAILED if sent.refused or any(row.verdict == "fail" for row in sent.rows) else outcome_of(report)
