"""The choice: its recipe run once more and judged on the test set, which no trial has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.report.document import Report
from edgewise.report.page import write_html
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import resolve_recipe
from edgewise.search.document import Choice
from edgewise.search.quantities import choose_row
from edgewise.search.records import Record
from edgewise.search.space import Space
from edgewise.search.trial import Judge, read_outcome
from edgewise.store.whole import write_whole

FOLDER = "best"
RECIPE = "recipe.py"


def judge_choice(
    record: Record, why: str, space: Space, judge: Judge, out: Path, looked_at: int, watch: Watch
) -> tuple[Choice, Report]:
    """Run the chosen trial's recipe into ``out/best`` and judge its files on the test set; the search's steps are in the store.

    ``looked_at``: the trials it was chosen from, which every card of it says.
    """
    from optuna.trial import FixedTrial

    recipe = space.make_recipe(FixedTrial(dict(record.values)))
    place = out / FOLDER
    job = resolve_recipe(recipe, place, searched=looked_at)
    report = run(job, watch)
    write_html(report, place)
    write_whole(place / RECIPE, record.recipe)
    outcome = read_outcome(report, recipe, judge)
    target = judge.objectives[0].on(recipe.targets)
    row = choose_row(report.rows, target)
    images = row.accuracy.n if row and row.accuracy else len(job.data.test)
    return (
        Choice(
            number=record.number,
            why=why,
            verdict=outcome.verdict,
            reason=outcome.reason,
            looked_at=looked_at,
            figures=outcome.figures,
            images=images,
            file=_file_of(report, target, row),
            target=target,
            precision=(row.precision or "") if row else "",
        ),
        report,
    )


def _file_of(report: Report, target: str, row: Any) -> str | None:
    """The path of the row's file, below the search's folder; None where it did not pass."""
    if row is None or row.verdict != "pass":
        return None
    path = next((entry.path for entry in report.recommended if entry.target == target and entry.path), None)
    return None if path is None else f"{FOLDER}/{path}"
