"""A run from Python, as in a notebook: ``edgewise.deploy(recipe)`` returns what shows itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgewise.recipe import Recipe
from edgewise.report.document import Report
from edgewise.report.page import frame_page, write_html
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import resolve_recipe


@dataclass(frozen=True)
class Deployed:
    """A finished run; the value of a notebook's cell shows its page."""

    report: Report
    out: Path
    """The folder of the report and the files."""

    def file(self, target: str) -> Path | None:
        """The recommended file for a target; None where none passed."""
        paths = {entry.target: entry.path for entry in self.report.recommended}
        path = paths.get(target)
        return None if path is None else self.out / path

    def _repr_html_(self) -> str:
        return frame_page(self.report)


def deploy(recipe: Recipe, out: Path | None = None, *, quiet: bool = False, keep_going: bool = False) -> Deployed:
    """Do everything that ``recipe`` asks for, as ``edgewise run`` does.

    ``out``: the folder of report and files; None: ``runs/NAME``. ``quiet``: say nothing meanwhile. Raises RequestError, or a
    leaf's ValueError, for what is wrong with the request, before anything is trained.
    """
    job = resolve_recipe(recipe, out)
    watch = Watch(quiet=quiet)
    try:
        report = run(job, watch, keep_going=keep_going)
    finally:
        watch.close()
    write_html(report, job.out)
    return Deployed(report, job.out)
