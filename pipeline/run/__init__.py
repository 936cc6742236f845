"""A run, top to bottom: baseline, float stages, one quantization per grid, files, verdicts.

``run`` is the list; what it calls does one line of it and adds a row to the report. Every result lives in the step store
under a key made of all that determines it, so that a second run computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgewise import targets
from edgewise.files import workers
from edgewise.report.document import Report
from edgewise.report.watch import Watch
from edgewise.run.artifacts import Files
from edgewise.run.job import Job
from edgewise.run.session import Session
from edgewise.run.steps import Steps
from edgewise.store import whole
from edgewise.store.entries import Store
from edgewise.store.machine import environment
from edgewise.targets import Grid, Target


def run(job: Job, watch: Watch) -> Report:
    """Do everything that the recipe asks for; the report on disk grows by a row after each step.

    A step that fails its gate ends the run there, since what follows would build on it; of the files each is judged.
    """
    Store(job.store).sweep()
    whole.sweep(job.out)
    with open_session(job, watch) as session:
        baseline = model = session.baseline()
        for index, stage in enumerate(job.recipe.stages):
            model = session.step(stage, model, baseline, after=job.recipe.stages[index + 1 :])
            if session.failed:
                return session.report
        for grid, group in share_grids(job.targets):
            ready = session.quantize(grid, model, baseline) if job.recipe.quantize else model
            session.candidates(model, ready, group, baseline)
        return session.report


@contextmanager
def open_session(job: Job, watch: Watch) -> Iterator[Session]:
    """Everything that the lines of a run are done with, its report still empty."""
    store = Store(job.store)
    with workers.start_workers() as pool:
        yield Session(
            job=job,
            watch=watch,
            steps=Steps(job=job, store=store, watch=watch),
            files=Files(job=job, store=store, pool=pool, watch=watch),
            report=Report(recipe=job.recipe.describe(), environment=environment(job.recipe.threads)),
        )


def share_grids(wanted: Sequence[Target]) -> list[tuple[Grid, tuple[Target, ...]]]:
    """Targets grouped so that each group shares one quantization: one for all where a common grid exists."""
    groups: list[tuple[Target, ...]] = []
    for target in wanted:
        for index, group in enumerate(groups):
            if targets.common_grid((*group, target)):
                groups[index] = (*group, target)
                break
        else:
            groups.append((target,))
    return [(grid, group) for group in groups if (grid := targets.common_grid(group))]
