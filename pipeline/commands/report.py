"""``edgewise report``: a report once more, from its report.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json, print_note
from edgewise.errors import RequestError


def add_parser(commands: Any) -> None:
    """``report DIR [DIR ...]``."""
    parser = add_command(
        commands, "report", "the report again, from report.json; of several runs, side by side", show_again
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a folder that a run wrote")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="of several runs: where their page goes (default: comparison.html in the first)",
    )
    parser.add_argument("--cyclonedx", action="store_true", help="also write a CycloneDX model card beside each file")


def outcome_of(report: Any, name: str = "") -> int:
    """The exit status of a report: passed where no gate failed and every target asked for has a file that was judged.
    ``name``: of the run, where there are several."""
    judged = {row.target for row in report.rows if row.step == "artifact"}
    targets_written = {artifact.target for artifact in report.artifacts if artifact.target in judged}
    missing = [target for target in report.recipe.get("targets", ()) if target not in targets_written]
    of_run = f"{name}: " if name else ""
    for target in missing:
        print_note(f"{of_run}no file for {target}: the run did not come to one, or has not yet")
    has_failed = any(row.verdict == "fail" and row.kept for row in report.rows)
    return FAILED if has_failed or missing or not targets_written else PASSED


def print_report(report: Any, as_json: bool, page: Path) -> None:
    """Print a report, as JSON or as a table."""
    if as_json:
        print_json(report.to_json())
        return
    from rich.console import Console

    from edgewise.report.terminal import terminal_table

    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(terminal_table(report, page))


def show_again(options: argparse.Namespace) -> int:
    """Write the page once more, and print the table; of several runs one page and one line each."""
    from edgewise.report.document import refuse_damaged

    if len(options.folders) == 1 and _is_search(options.folders[0]):
        return _show_search(options.folders[0], options)
    if len(options.folders) > 1:
        return compare_runs(options)
    if options.out is not None:
        raise RequestError(
            "--out names the page of several runs side by side; of one run the page is report.html in its folder"
        )
    with refuse_damaged(options.folders[0]):
        return _show_run(options.folders[0], options)


def _is_search(folder: Path) -> bool:
    """Whether a folder holds a search's report; the file alone is looked at, and nothing heavy is loaded."""
    from edgewise.store.reading import read_json

    try:
        document = read_json(folder / "report.json")
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("kind") == "search"


def _show_search(folder: Path, options: argparse.Namespace) -> int:
    from edgewise.commands.search import show_document
    from edgewise.search.document import read_document
    from edgewise.search.page import write_page

    document = read_document(folder)
    write_page(document, folder)
    return show_document(document, folder, options.json)


def _show_run(folder: Path, options: argparse.Namespace) -> int:
    from edgewise.report.document import Report

    report = Report.read(folder)  # before what needs NumPy and PyTorch: a mistyped folder is told at once
    from edgewise.device.intake import take_in
    from edgewise.report.page import write_html

    intake = take_in(folder)
    if list(intake.rows) != report.devices:
        report.devices = list(intake.rows)
        report.write(folder)
    page = write_html(report, folder)
    if options.cyclonedx:
        write_model_cards(report, folder)
    print_report(report, options.json, page)
    for sentence in intake.refused:
        print_note(f"not taken in: {sentence}")
    return FAILED if intake.refused or any(row.verdict == "fail" for row in intake.rows) else outcome_of(report)


def compare_runs(options: argparse.Namespace) -> int:
    """Lay several runs side by side on one page; FAILED where any of them failed."""
    from edgewise.report import side_by_side
    from edgewise.report.document import refuse_damaged
    from edgewise.report.summary import SYMBOLS, summarize

    runs = side_by_side.named_reports(options.folders)
    with refuse_damaged(Path(" or ".join(map(str, options.folders)))):
        page = side_by_side.write_comparison(runs, options.out or options.folders[0] / side_by_side.FILE)
    if options.json:
        print_json({"runs": {name: report.to_json() for name, report in runs}})
    else:
        for name, report in runs:
            summary = summarize(report)
            print(f"{SYMBOLS[summary.verdict]} {name}: {summary.title}. {summary.best}".rstrip())
        print(f"Side by side: {page}")
    return max(outcome_of(report, name) for name, report in runs)


def write_model_cards(report: Any, folder: Path) -> None:
    """A CycloneDX model card beside each of the report's files. Raises EvidenceError for one whose card is lost or changed."""
    from edgewise.verify import card, model_card

    for path in whole_files(report, folder):
        print_note(f"wrote {model_card.write(path, card.read(path))}")


def whole_files(report: Any, folder: Path, wanted: Container[str] | None = None) -> Iterator[Path]:
    """The report's files, for the targets ``wanted`` (None: for all), each held against its manifest.

    Raises EvidenceError for one that is not what the run wrote, or lies outside its folder.
    """
    from edgewise.errors import EvidenceError
    from edgewise.verify import manifest

    for artifact in report.artifacts:
        path = folder / artifact.path
        if not path.resolve().is_relative_to(folder.resolve()):
            raise EvidenceError(f"the report in {folder} names a file outside of it: {artifact.path}")
        if wanted is None or artifact.target in wanted:
            manifest.require_whole(path)
            yield path
