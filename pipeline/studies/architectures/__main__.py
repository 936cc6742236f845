"""``python -m edgewise.studies.architectures``: measure what has not been measured yet, and write the table."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.commands.console import FAILED, PASSED, run_guarded
from edgewise.studies.architectures import cells
from edgewise.studies.architectures.adopt import adopt_results
from edgewise.studies.architectures.cells import PRECISIONS, Cell
from edgewise.studies.architectures.keys import cell_key
from edgewise.studies.architectures.results import Results

if TYPE_CHECKING:
    from edgewise.studies.architectures.supervise import Worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, as ``python -m edgewise`` has them."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _run_study(options: argparse.Namespace) -> int:
    """0 where every chosen cell has a result, 1 where one failed."""
    cells = _choose_cells(options)
    results = Results(options.out / "cells")
    table = options.docs / "architectures.json"
    if adoption := adopt_results(table, results):
        _print_note(f"{adoption} results taken over from {table}")
    status = PASSED
    if not options.table:
        status = _measure_all(options, results, cells)
    from edgewise.studies.architectures.table import write

    for path in write(results, options.docs):
        _print_note(f"written: {path}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.architectures",
        description="Takes every architecture at its published size to every installed target, float and int8, and "
        "writes a table of what was measured. Goes on where it was stopped, from the table's own figures where the results "
        "are not at hand; results of changed code are made anew.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these (default: every registered one)")
    parser.add_argument("--target", action="append", metavar="T", help="only this target; repeat for several")
    parser.add_argument("--precision", choices=PRECISIONS, help="only this one (default: both)")
    parser.add_argument("--out", type=Path, default=Path("runs/journey"), metavar="DIR", help="results (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="the table (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="a file may take (%(default)s)")
    parser.add_argument("--memory", type=float, default=10, help="gigabytes the worker may hold (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what failed before")
    parser.add_argument(
        "--together",
        action="store_true",
        help="also time the int8 files of every runtime on this machine side by side, whatever --target says",
    )
    parser.add_argument("--table", action="store_true", help="only write the table of what there is")
    return parser


def _choose_cells(options: argparse.Namespace) -> list[Cell]:
    from edgewise import models, targets

    for name in options.models:
        models.get(name)
    here, missing = cells.installed_targets()
    target_names = options.target or here
    for name in target_names:
        targets.get(name)
    for name, why in missing.items() if not options.target else ():
        _print_note(f"without {name}: {why}")
    return cells.plan(options.models, target_names, [options.precision] if options.precision else PRECISIONS)


def _measure_all(options: argparse.Namespace, results: Results, chosen: list[Cell]) -> int:
    """Measure what is missing, architecture by architecture; 1 where something failed."""
    from edgewise.studies.architectures.supervise import Worker

    pending = list(results.pending(chosen, options.again))
    scratch = (options.out / "scratch").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    done = len(chosen) - len(pending)
    _print_note(f"{done} of {len(chosen)} files measured before, {len(pending)} to do")
    has_failed = False
    try:
        with Worker(60 * options.minutes, int(1e9 * options.memory)) as worker:
            for name in dict.fromkeys(cell.model for cell in chosen):
                for cell in (cell for cell in pending if cell.model == name):
                    done += 1
                    has_failed |= _measure_cell(worker, results, cell, scratch, f"{done}/{len(chosen)}")
                if options.together:
                    has_failed |= _compare_runtimes(worker, results, name, scratch, options.again)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return FAILED if has_failed else PASSED


def _measure_cell(worker: Worker, results: Results, cell: Cell, scratch: Path, place: str) -> bool:
    """Measure a cell and keep what came of it; whether it failed."""
    from edgewise.studies.architectures.work import size_up, work_on_cell

    if results.costs(cell.model) is None:
        results.keep_costs(cell.model, worker.do(size_up, cell.model))
    start = time.perf_counter()
    key, result = cell_key(cell), worker.do(work_on_cell, cell, scratch)
    results.keep(cell, result | {"key": key})
    _print_note(f"{place} {cell}: {_in_words(result)}, {time.perf_counter() - start:.0f} s")
    return "failed" in result


def _compare_runtimes(worker: Worker, results: Results, name: str, scratch: Path, again: bool) -> bool:
    """Time an architecture's int8 files side by side where that was not done; whether it failed."""
    from edgewise.studies.architectures.together import is_current, timed_targets, together_key
    from edgewise.studies.architectures.work import compare_runtimes

    kept, compared = results.together(name), timed_targets(name)
    is_kept = kept is not None and is_current(name, kept) and {*compared} <= {*kept["compared"]}
    if is_kept and not (again and kept and kept.get("failed")):
        return False
    start = time.perf_counter()
    comparison = worker.do(compare_runtimes, name, scratch)
    results.keep_together(name, comparison | {"compared": compared, "key": together_key(name, compared)})
    times = ", ".join(f"{target} {file['ratio']:.2f}×" for target, file in comparison.get("files", {}).items())
    _print_note(f"{name} side by side: {times or comparison.get('failed')}, {time.perf_counter() - start:.0f} s")
    return "failed" in comparison


def _in_words(result: dict[str, object]) -> str:
    from edgewise.studies.architectures.table import error_of, ratio_of, size_of, why_unmeasured

    if reason := why_unmeasured(result):
        return reason
    return f"error {error_of(result)}, {size_of(result)}, {ratio_of(result)} of float ONNX"


def _print_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
