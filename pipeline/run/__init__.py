"""A run, top to bottom: baseline, float stages, one quantization per grid, files, verdicts.

``run`` is the list; what it calls does one line of it and adds a row to the report. Every result lives in the step store
under a key made of all that determines it, so that a second run computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgewise.files import workers
from edgewise.report.document import Report
from edgewise.report.outcomes import Outcomes
from edgewise.report.watch import Watch
from edgewise.run.artifacts import Files
from edgewise.run.attempts import group_attempts
from edgewise.run.grids import share_grids
from edgewise.run.job import Job
from edgewise.run.place import hold_place, sweep_earlier
from edgewise.run.session import Session
from edgewise.run.steps import Steps
from edgewise.store import whole
from edgewise.store.entries import Store
from edgewise.store.machine import read_environment


def run(job: Job, watch: Watch, *, keep_going: bool = False) -> Report:
    """Do everything that the recipe asks for; the report on disk grows by a row after each step.

    A step that fails its gate ends the run there, since what follows would build on it; of the files each is judged.
    ``keep_going``: go on behind it all the same; its row stays failed, and so does the run.
    """
    Store(job.store).sweep()
    with hold_place(job.out, watch), open_session(job, watch) as session, session.telling_what_stopped():
        whole.sweep(job.out)
        baseline = model = session.baseline()
        session.keep_going = keep_going
        for stages in group_attempts(job.recipe.stages):
            if session.failed and not keep_going:
                break
            model = session.attempt(stages, model, baseline)
        if session.failed and not keep_going:
            return session.report
        for grid, group in share_grids(job.targets):
            ready = session.attempt_in_integers(grid, model, baseline) if job.recipe.quantize else model
            session.candidates(model, ready, group, baseline)
        session.show_changed(baseline)
        for name in sweep_earlier(job.out, session.report):
            watch.detail(f"{name}, of an earlier run into {job.out}, is taken away")
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
            report=Report(recipe=job.recipe.describe(), environment=read_environment(job.recipe.threads)),
            outcomes=Outcomes(data=job.data.digest, labels=job.data.test.labels.numpy().astype("int32")),
        )
