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
    parser.add_argument("--cyclonedx", action="store_true", help="also write a CycloneDX model card beside each file")


def outcome_of(report: Any) -> int:
    """The exit status of a report: passed where no gate failed and every target asked for has a file."""
    delivered = {artifact.target for artifact in report.artifacts}
    missing = [name for name in report.recipe.get("targets", ()) if name not in delivered]
    for name in missing:
        say(f"no file for {name}: the run did not come to one, or has not yet")
    failed = any(row.verdict == "fail" for row in report.rows)
    return FAILED if failed or missing or not delivered else PASSED


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
    from edgewise.report.document import Report
    from edgewise.report.page import write_html

    report = Report.read(options.folder)
    page = write_html(report, options.folder)
    if options.cyclonedx:
        write_model_cards(report, options.folder)
    show(report, options.json, page)
    return outcome_of(report)


def write_model_cards(report: Any, folder: Path) -> None:
    """A CycloneDX model card beside each of the report's files. Raises EvidenceError for one whose card is lost or changed."""
    from edgewise.errors import EvidenceError
    from edgewise.verify import card, manifest, model_card

    for artifact in report.artifacts:
        path = folder / artifact.path
        if not path.resolve().is_relative_to(folder.resolve()):
            raise EvidenceError(f"the report in {folder} names a file outside of it: {artifact.path}")
        if wrong := manifest.problems(path, manifest.read(path)):
            raise EvidenceError(f"{path} is not the file that was verified: {'; '.join(map(str, wrong))}")
        say(f"wrote {model_card.write(path, card.read(path))}")
