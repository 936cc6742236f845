"""A search from top to bottom: everything checked, workers at work, the choice judged, the page written."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.report.watch import Watch
from edgewise.search import storage as storages
from edgewise.search.alive import ALIVE, is_process_gone, retry_trial
from edgewise.search.document import Choice, Document, best_of, make_document
from edgewise.search.final import judge_choice
from edgewise.search.first_values import first_values
from edgewise.search.page import write_page
from edgewise.search.records import read_records
from edgewise.search.space import Space, load_space
from edgewise.search.study import Request, join_study, settings_of
from edgewise.search.trial import Judge, check_first
from edgewise.search.worker import Worker, processors
from edgewise.store.entries import file_digest
from edgewise.store.reading import read_json

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

    from edgewise.run.job import Job


@dataclass(kw_only=True)
class Search:
    """Everything that a search needs, checked."""

    request: Request
    space: Space
    judge: Judge
    out: Path
    where: str | None
    """The storage's address; None: a journal file in ``out``."""
    storage: BaseStorage
    study: Study
    watch: Watch

    @property
    def storage_text(self) -> str:
        """The storage as others are told of it."""
        return storages.hide_password(self.where) if self.where else str(self.out / storages.JOURNAL)

    def make_worker(self, until: float | None, *, writes: bool = True) -> Worker:
        """This process as a worker. ``writes``: whether the page is written anew after its trials."""
        return Worker(
            study=self.study,
            storage=self.storage,
            request=self.request,
            space=self.space,
            judge=self.judge,
            out=self.out,
            say=self.watch.say,
            until=until,
            settle=self.watch.settle,
            after_trial=self._write_again if writes else lambda: None,
        )

    def _write_again(self) -> None:
        self.write()

    def write(self, choice: Choice | None = None, ended: str = "") -> Document:
        """The document and the page as the study is now."""
        document = make_document(self.study, self.request, self.storage_text, choice, ended)
        document.write(self.out)
        write_page(document, self.out)
        return document

    def finish(self, ended: str) -> Document:
        """Judge the choice on the test set, and write what the search came to."""
        document = self.write(ended=ended)
        best = best_of(document)
        if best is None:
            return document
        record, why = best
        self.watch.say(f"trial {record.number} is the choice: {why}; judged on the test set …")
        looked_at = len(document.finished)
        choice, _ = judge_choice(record, why, self.space, self.judge, self.out, looked_at, self.watch)
        return self.write(choice, ended)


def prepare_search(
    *,
    request: Request,
    changes: Mapping[str, Any],
    judge: Judge,
    out: Path,
    where: str | None,
    joins: bool,
    workers: int,
    watch: Watch,
) -> Search:
    """Load the space, look up a first recipe of it, open the storage, make or join the study.

    ``joins``: as one more worker of a search that somebody began; ``workers``: that will share this machine. Raises
    RequestError, or a leaf's error, for whatever is wrong; nothing is run and no trial is lost.
    """
    watch.begin("asking the storage")
    check_folder(out)
    with storages.without_empty_journal(where, out):
        with storages.storage_errors(where):
            storage = storages.open_storage(where, out, retry_trial)
        watch.begin("loading PyTorch")
        from edgewise.library_noise import quieten_libraries

        quieten_libraries()
        space = load_space(request.space, changes, judge.limits)
        watch.begin("looking at a first recipe of the space")
        job = _look_ahead(space, judge)
    request = _with_identity(request, space, job, changes)
    with storages.storage_errors(where):
        study = join_study(storage, request, _threads(workers), first_values(space.function), make=not joins)
    if storages.is_single(where):
        _refuse_second(study)
    threads = int(settings_of(study)["threads"])
    if threads > processors():
        watch.warn(
            f"this search computes with {threads} threads, and {processors()} processors are here: it will be slow"
        )
    _use_threads(threads)
    return Search(
        request=request, space=space, judge=judge, out=out, where=where, storage=storage, study=study, watch=watch
    )


def check_folder(out: Path) -> None:
    """Raise RequestError for a folder that holds a run, or cannot be written."""
    document = None
    with contextlib.suppress(OSError, ValueError):
        document = read_json(out / "report.json")
    if isinstance(document, Mapping) and "recipe" in document:
        raise RequestError(
            f"{out} holds a run, and a search's report would take the place of its own; name another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"cannot write into {out}: {error.strerror}; choose another folder with --out") from error


def _look_ahead(space: Space, judge: Judge) -> Job:
    """What a first recipe names, looked up. Values that make no recipe are passed over, as a trial of them would be stopped."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    refusal: RequestError | None = None
    for _ in range(_LOOKS):
        try:
            recipe = space.make_recipe(study.ask())
        except RequestError as error:
            if type(error) is not RequestError:
                raise
            refusal = error
            continue
        return check_first(recipe, (*judge.objectives,), (*judge.limits, *judge.goals))
    raise RequestError(f"{space.reference} makes no recipe: of {_LOOKS} sets of values the last says: {refusal}")


_LOOKS = 20


def _with_identity(request: Request, space: Space, job: Job, changes: Mapping[str, Any]) -> Request:
    """The request with all that its trials' figures rest on."""
    from dataclasses import replace

    weights = None if job.weights is None or not job.weights.is_file() else file_digest(job.weights)
    identity = {
        "space": {"name": request.space.rpartition("/")[2], **space.digests()},
        "changes": {name: list(v) if isinstance(v, tuple) else v for name, v in changes.items() if _counts(name, v)},
        "objectives": [str(measure) for measure in request.objectives],
        "limits": [str(bound) for bound in request.limits],
        "data": job.given.digest,
        "weights": weights,
    }
    return replace(request, identity=identity)


def _counts(name: str, value: Any) -> bool:
    """Whether a change says something that no digest says: paths may differ from host to host."""
    return value is not None and name not in ("data", "weights")


def _threads(workers: int) -> int:
    """Threads that each of ``workers`` computes with, where this process is the first: never more than its processors, since
    those that wait for each other on one processor wait for the end of its time slice."""
    import torch

    return min(torch.get_num_threads(), threads_of(workers))


def _use_threads(count: int) -> None:
    """What results are kept under names the number of threads, so that all workers and the choice use the same."""
    import torch

    torch.set_num_threads(count)


def _refuse_second(study: Study) -> None:
    """Raise RequestError where another living process works on a study that bears one worker alone."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(ALIVE)
        if worker and worker.get("pid") != os.getpid() and not is_process_gone(worker):
            raise RequestError(
                f"process {worker.get('pid')} works on this search already, and SQLite serves one worker only (Optuna would "
                "never recommend it for parallel optimization); wait for its end, or use a journal file or a database"
            )


def follow(search: Search, is_over: Callable[[], bool], every: float = 1.0) -> Iterator[None]:
    """Yield now and then until ``is_over``, and say which trials were finished meanwhile."""
    from edgewise.search.worker import describe_record

    told = {record.number for record in read_records(search.study) if record.is_finished}
    while True:
        over = is_over()
        fresh = [r for r in read_records(search.study) if r.is_finished and r.number not in told]
        for record in fresh:
            told.add(record.number)
            search.watch.say(describe_record(record, search.request))
        if fresh:
            search.write()
        if over:
            return
        search.watch.settle()
        yield
        time.sleep(every)


def cpus_of(index: int, workers: int) -> Sequence[int]:
    """The processors of one of several workers on this machine, apart from the others' where there are enough: times that are
    taken side by side on one processor are of neither."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    permitted = sorted(os.sched_getaffinity(0))
    return permitted[index::workers] if len(permitted) >= workers else permitted


def threads_of(workers: int) -> int:
    """Threads that each of several workers on this machine computes with."""
    return max(1, processors() // workers)
