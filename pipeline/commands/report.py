"""``edgewise report``: a report once more, from its report.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgewise.commands.console import FAILED, PASSED, _print_json


def _outcome(report: Any) -> int:
    return FAILED if any(row.verdict == "fail" for row in report.rows) else PASSED


def _show(report: Any, as_json: bool, page: Path) -> None:
    if as_json:
        _print_json(report.to_json())
        return
    from rich.console import Console

    from edgewise.report.terminal import table

    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table(report, page))


def _report(options: argparse.Namespace) -> int:
    from edgewise.report.document import Report
    from edgewise.report.page import write_html

    report = Report.read(options.folder)
    page = write_html(report, options.folder)
    _show(report, options.json, page)
    return _outcome(report)
