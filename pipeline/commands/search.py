"""``edgewise search``: which recipe of a space is best, by many runs."""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json, print_note
from edgewise.errors import RequestError

if TYPE_CHECKING:
    from edgewise.report.watch import Watch
    from edgewise.search.document import Document
    from edgewise.search.session import Search

OBJECTIVES = ("top1", "latency")


def add_parser(commands: Any) -> None:
    """``search SPACE``."""
    search = add_command(commands, "search", "search for the best recipe of a space, by many runs", run_search)
    search.add_argument(
        "space", metavar="SPACE", help="a name from 'list spaces', or path/to/space.py:function, which takes a trial"
    )
    search.add_argument("--trials", type=int, metavar="N", help="finished trials that are wanted (default: 30)")
    search.add_argument(
        "--objective",
        action="append",
        metavar="NAME",
        help="top1, drop, latency, ms, bytes or peak_memory, also of one target as latency@xnnpack; repeat for a front "
        f"(default: {' and '.join(OBJECTIVES)})",
    )
    search.add_argument(
        "--limit",
        action="append",
        metavar="NAME=N",
        help="what a trial must keep: drop=0.005 (half a point), ms=5, bytes=60000; repeat for several",
    )
    search.add_argument(
        "--goal", action="append", metavar="NAME=N", help="end when a trial reaches this, and all others so given"
    )
    search.add_argument("--timeout", metavar="TIME", help="begin no trial after so long: 900 (seconds), 15m, 8h")
    search.add_argument(
        "--sampler", choices=("tpe", "nsga2"), default="tpe", help="what proposes values (default: tpe)"
    )
    search.add_argument(
        "--rungs",
        choices=("auto", "always", "never"),
        default="auto",
        help="try a quarter of a recipe's training first: where it is long (auto), always, or never",
    )
    search.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    search.add_argument(
        "--worker", action="store_true", help="join a search that was begun elsewhere, as one more worker of it"
    )
    search.add_argument(
        "--storage",
        metavar="S",
        help="where the study is kept: a path for a journal file (default: in DIR), postgresql://… or mysql://…",
    )
    search.add_argument("--name", metavar="NAME", help="of the search in its storage (default: the space's)")
    search.add_argument("--model", metavar="M", help="instead of the space's network, as for run")
    search.add_argument("--weights", metavar="F", help="instead of the space's weights")
    search.add_argument("--data", metavar="D", help="instead of the space's images")
    search.add_argument(
        "--target", action="append", metavar="T", help="instead of the space's targets; repeat for several"
    )
    search.add_argument("--runtime", metavar="T", help="instead of the space's runtime")
    search.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of the proposals")
    search.add_argument(
        "--out", type=Path, metavar="DIR", help="page, trials and the choice (default: runs/search-NAME)"
    )


def run_search(options: argparse.Namespace) -> int:
    """Run trials until enough are finished, judge the choice, print what it came to."""
    from edgewise.search.alive import go_with_parent

    go_with_parent()
    _check_words(options)
    from edgewise.report.watch import Watch

    watch = Watch()
    try:
        search = _prepare(options, watch)
        ended = _work(search, options)
        if options.worker:
            watch.say(f"this worker ends: {ended}")
            return PASSED
        document = search.finish(ended)
    finally:
        watch.close()
    return show_document(document, search.out, options.json)


def _check_words(options: argparse.Namespace) -> None:
    """What can be refused by the words and the disk alone, before PyTorch is loaded."""
    from edgewise.catalogue import check_space_name, check_words
    from edgewise.search.storage import check_optuna, check_storage

    check_space_name(options.space)
    for name, least in (("trials", 1), ("workers", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise RequestError(f"--{name}: wanted {least} or more, found {value}")
    if options.worker and options.workers > 1:
        raise RequestError("--worker joins as one worker; start several, or give --workers to the command that begins")
    _read_timeout(options.timeout)
    check_words(
        options.model, options.weights, options.data, [*(options.target or ()), *filter(None, [options.runtime])]
    )
    check_optuna()
    check_storage(options.storage, 2 if options.worker else options.workers)


def _read_timeout(text: str | None) -> float | None:
    """Seconds. Raises RequestError."""
    if text is None:
        return None
    from edgewise.store.contents import seconds_of

    seconds = 0.0
    with contextlib.suppress(RequestError):
        seconds = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else seconds_of(text)
    if not 0 < seconds < float("inf"):
        raise RequestError(f"--timeout: wanted a time above 0, as 900, 15m or 8h, found {text!r}")
    return seconds


def _prepare(options: argparse.Namespace, watch: Watch) -> Search:
    from edgewise.search.quantities import read_bound, read_objectives
    from edgewise.search.session import prepare_search
    from edgewise.search.study import Request
    from edgewise.search.trial import Judge

    objectives = read_objectives(options.objective or OBJECTIVES)
    limits = tuple(read_bound(text, "--limit") for text in options.limit or ())
    goals = tuple(read_bound(text, "--goal") for text in options.goal or ())
    name = options.name or options.space.rpartition(":")[2]
    request = Request(
        name=name,
        space=options.space,
        objectives=objectives,
        limits=limits,
        goals=goals,
        trials=options.trials if options.trials or options.worker else 30,
        sampler=options.sampler,
        seed=options.seed,
    )
    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device", "runtime")}
    changes["targets"] = tuple(options.target) if options.target else None
    return prepare_search(
        request=request,
        changes=changes,
        judge=Judge(objectives=objectives, limits=limits, goals=goals, rungs=options.rungs),
        out=options.out or Path("runs") / f"search-{name}",
        where=options.storage,
        joins=options.worker,
        workers=options.workers,
        watch=watch,
    )


def _work(search: Search, options: argparse.Namespace) -> str:
    """Run the trials here or in processes of their own; why they ended."""
    from edgewise.search.storage import storage_errors

    seconds = _read_timeout(options.timeout)
    until = None if seconds is None else time.monotonic() + seconds
    with storage_errors(options.storage):
        if options.workers > 1:
            from edgewise.search.crew import Crew

            search.watch.say(f"{options.workers} workers; what each does stands in {search.out / 'workers'}")
            Crew(search, _worker_arguments(search, options), options.workers).work()
        return search.make_worker(until, writes=not options.worker).work()


def _worker_arguments(search: Search, options: argparse.Namespace) -> list[str]:
    """The words with which a worker joins this search."""
    words = ["search", options.space, "--worker", "--out", str(search.out), "--name", search.request.name]
    single = (
        "storage",
        "model",
        "weights",
        "data",
        "runtime",
        "device",
        "timeout",
        "sampler",
        "rungs",
        "seed",
        "trials",
    )
    for name in single:
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    for name in ("objective", "limit", "goal", "target"):
        for value in getattr(options, name) or ():
            words += [f"--{name}", str(value)]
    return words


def show_document(document: Document, folder: Path, as_json: bool) -> int:
    """Print the document or what it comes to; the exit status."""
    from edgewise.search.document import summarize
    from edgewise.search.worker import show_figure

    if as_json:
        print_json(document.to_json())
    else:
        for line in summarize(document):
            print(line)
        names = [str(measure) for measure in document.request.objectives]
        for record in document.front:
            figures = ", ".join(f"{name} {show_figure(name, record.figures[name][0])}" for name in names)
            print(f"  trial {record.number}: {figures}")
        if document.choice is not None:
            choice = document.choice
            figures = ", ".join(f"{n} {show_figure(n, choice.figures[n][0])}" for n in names if n in choice.figures)
            print(f"Choice: trial {choice.number}, {choice.why}.")
            print(
                f"On the test set (n = {choice.images:,}, one of {choice.looked_at} trials): {choice.verdict}; {figures}"
            )
        print(f"Page: {folder / 'report.html'}")
    if document.choice is None:
        print_note("no trial is within the limits: allow more with --limit, widen the space, or run more trials")
        return FAILED
    if document.choice.verdict == "fail":
        print_note(f"the choice fails on the test set: {document.choice.reason}")
        return FAILED
    return PASSED
