"""One trial: a run of one recipe, judged on calibration images, its cheapest part first."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgewise.errors import EdgewiseError, RequestError
from edgewise.recipe import Recipe
from edgewise.report.document import Report
from edgewise.report.page import write_html
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import Job, resolve_recipe
from edgewise.search.quantities import QUANTITIES, Bound, Figure, Measure, choose_row
from edgewise.stage import Stage
from edgewise.store.uses import count_uses

Rung = Literal["plan", "short training", "run", "files"]
"""How far a trial came: refused before any work, after a part of its training, in a step or an error of its run; or whole."""
Rungs = Literal["auto", "always", "never"]
"""Whether a part of the training is tried first: where that can save minutes, always, or never."""

SHORT = 0.25
"""Share of the epochs that are tried first."""
SLACK = 3.0
"""Times the allowed fall that a network may certainly have lost after them: the rest of the training wins some of it back."""
WORTH = 2.4e12
"""Multiply-accumulates of training from which on a part of it is tried first: some minutes of a processor."""
_FEWEST = 4
"""Epochs below which a training is not shortened."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial."""

    rung: Rung
    reason: str
    """In words: why it was stopped, or what its gates say."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Measure -> what was measured; empty where it was stopped."""
    excesses: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> by how much it is broken, above 0, in shares of its bound."""
    verdict: str = "fail"
    """Of the file and of every bound, the worst."""
    precision: str = ""
    seconds: float = 0.0
    uses: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether it came to a file whose figures can be weighed."""
        return self.rung == "files"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a trial is measured for."""

    objectives: tuple[Measure, ...]
    limits: tuple[Bound, ...] = ()
    goals: tuple[Bound, ...] = ()
    rungs: Rungs = "auto"

    @property
    def measures(self) -> dict[str, Measure]:
        """Everything that is read from a trial's files, by its name; the accuracy and the size always."""
        from edgewise.search.quantities import read_measure

        bounds = [bound.measure for bound in (*self.limits, *self.goals)]
        usual = [read_measure(name) for name in ("top1", "drop", "latency", "ms", "bytes", "peak_memory")]
        return {str(measure): measure for measure in (*self.objectives, *bounds, *usual)}


def run_trial(recipe: Recipe, folder: Path, judge: Judge, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run a recipe into ``folder`` and read what it came to. What goes wrong with it is its outcome, and no error.

    The run's own lines go to ``folder/run.log``.
    """
    started = time.monotonic()
    with count_uses() as uses:
        outcome = _try_rungs(recipe, folder, judge, say)
    return dataclasses.replace(outcome, seconds=time.monotonic() - started, uses=uses.to_json())


def _try_rungs(recipe: Recipe, folder: Path, judge: Judge, say: Callable[[str], None]) -> Outcome:
    try:
        job = resolve_recipe(recipe, folder, on_calibration=True)
    except (EdgewiseError, ValueError) as error:
        return _stopped("plan", str(error), "request")
    watch = Watch(quiet=True, log=folder / "run.log")
    try:
        if (short := _shorter_job(job, judge.rungs)) is not None:
            say("a part of its training first")
            reason = _find_break(short, watch, judge)
            if reason:
                return _stopped("short training", f"after a quarter of its training: {reason}", "short training")
        report = run(job, watch)
        write_html(report, job.out)
        return read_outcome(report, recipe, judge)
    except EdgewiseError as error:
        return _stopped("run", str(error), "run")
    finally:
        watch.close()


def _stopped(rung: Rung, reason: str, what: str) -> Outcome:
    return Outcome(rung=rung, reason=reason, excesses={what: 1.0})


def read_outcome(report: Report, recipe: Recipe, judge: Judge) -> Outcome:
    """What a run's rows say of everything that is weighed."""
    rows, wanted = report.rows, recipe.targets
    failed = next((row for row in rows if row.verdict == "fail" and row.kept and row.step != "artifact"), None)
    if failed is not None:
        return _stopped("run", f"{failed.label}: {failed.reason}", "gates of a step")
    figures = {name: figure for name, measure in judge.measures.items() if (figure := measure.read(rows, wanted))}
    lacking = [str(measure) for measure in judge.objectives if str(measure) not in figures]
    if lacking:
        why = (
            "; ".join(row.reason for row in rows if row.step == "artifact" and row.verdict == "fail") or "not measured"
        )
        return _stopped("run", f"no {', '.join(lacking)}: {why}", "files")
    verdicts, reasons, excesses = [], [], {}
    for target in dict.fromkeys(measure.on(wanted) for measure in judge.objectives):
        row = choose_row(rows, target)
        assert row is not None
        verdicts.append(row.verdict)
        reasons += [f"{target}: {row.reason}"] if row.verdict != "pass" else []
        excesses[f"gates@{target}"] = 1.0 if row.verdict == "fail" else 0.0
    for bound in (*judge.limits, *_own_limits(recipe, judge)):
        verdict, excess, reason = bound.judge(rows, wanted)
        verdicts.append(verdict)
        reasons += [reason] if verdict != "pass" else []
        excesses[str(bound)] = excess
    worst = next(verdict for verdict in ("fail", "not-checked", "pass") if verdict in verdicts)
    row = choose_row(rows, judge.objectives[0].on(wanted))
    return Outcome(
        rung="files",
        reason="; ".join(dict.fromkeys(reasons)),
        figures=figures,
        excesses=excesses,
        verdict=worst,
        precision=(row.precision or "") if row else "",
    )


def _own_limits(recipe: Recipe, judge: Judge) -> list[Bound]:
    """The recipe's own limit on the fall of accuracy, where the search is given none: gates leave open what few calibration
    images do not decide, and the measured value then counts."""
    if any(bound.measure.quantity.name == "drop" for bound in judge.limits):
        return []
    targets = dict.fromkeys(measure.on(recipe.targets) for measure in judge.objectives)
    limits = {target: recipe.target_limits.get(target, recipe.limits) for target in targets}
    return [
        Bound(measure=Measure(quantity=QUANTITIES["drop"], target=target), value=own.max_drop)
        for target, own in limits.items()
    ]


def _find_break(job: Job, watch: Watch, judge: Judge) -> str:
    """Why the limits are broken beyond repair after a part of the training; empty where they are not."""
    report = run(job, watch)
    broken = [row for row in report.rows if row.verdict == "fail" and row.kept]
    files = [row for row in report.rows if row.step == "artifact"]
    if any(row.step != "artifact" for row in broken) or (files and all(row.verdict == "fail" for row in files)):
        return f"{broken[0].label}: {broken[0].reason}"
    others = [bound for bound in judge.limits if bound.measure.quantity.name not in ("drop", "top1")]
    verdicts = [bound.judge(report.rows, job.recipe.targets) for bound in others]
    return next((reason for verdict, _, reason in verdicts if verdict == "fail"), "")


def _shorter_job(job: Job, rungs: Rungs) -> Job | None:
    """The job with a part of its training, in a folder beside; None where it is not to be tried, or nothing can be shortened."""
    recipe = shorter_recipe(job.recipe)
    if rungs == "never" or recipe is None or (rungs == "auto" and _training_macs(job) < WORTH):
        return None
    return dataclasses.replace(job, recipe=recipe, out=job.out / "short")


def shorter_recipe(recipe: Recipe) -> Recipe | None:
    """``recipe`` with a quarter of the epochs of every fine-tuning, calibrated without training, and a fall of three times its
    limit allowed; None where nothing of it is long."""
    stages = tuple(map(_shorter_stage, recipe.stages))
    if stages == recipe.stages:
        return None
    quantize = recipe.quantize and dataclasses.replace(
        recipe.quantize, training=None, max_float_layers=0, sensitivity=0
    )
    return dataclasses.replace(
        recipe,
        stages=stages,
        quantize=quantize,
        limits=_with_slack(recipe.limits),
        target_limits={name: _with_slack(limits) for name, limits in recipe.target_limits.items()},
        on_failure="stop",
    )


def _with_slack(limits: Any) -> Any:
    return dataclasses.replace(
        limits, max_drop=min(1.0, SLACK * limits.max_drop), max_class_drop=1.0, min_agreement=0.0
    )


def _shorter_stage(stage: Stage) -> Stage:
    training = getattr(stage, "training", None)
    if training is None or training.epochs < _FEWEST:
        return stage
    epochs = max(1, round(SHORT * training.epochs))
    own: Any = stage
    short = dataclasses.replace(training, epochs=epochs, warmup=min(training.warmup, epochs))
    shorter: Stage = dataclasses.replace(own, training=short)
    return shorter


def _training_macs(job: Job) -> float:
    """Multiply-accumulates of the fine-tuning of a whole run, those backwards included; 0 where the store holds its result."""
    from edgewise.measure.cost.totals import count_costs
    from edgewise.network.start import begin_network
    from edgewise.run.steps import Steps
    from edgewise.store.entries import Store

    images = sum(map(_images_trained, job.recipe.stages, [len(job.data.train)] * len(job.recipe.stages)))
    network = begin_network(job.base, job.images(), job.weights).model
    macs = 3.0 * count_costs(network, job.data.shape).macs * images
    if macs < WORTH:
        return macs
    kept = Steps(job=job, store=Store(job.store), watch=Watch(quiet=True)).count_kept()
    return 0.0 if kept > len(job.recipe.stages) else macs


def _images_trained(stage: Stage, whole: int) -> int:
    """Images that a stage trains on, each as often as it is seen; ``whole``: of the training part."""
    training = getattr(stage, "training", None)
    if training is None:
        return 0
    return int(training.epochs * (training.steps * training.batch_size or whole))


def check_first(recipe: Recipe, objectives: Sequence[Measure], limits: Sequence[Bound]) -> Job:
    """Look up everything of a first recipe but what its stages can do; what is wrong with the request is raised here.

    Raises RequestError, or a leaf's error, for a network, images, weights or targets that cannot be used, and for a measure
    that nothing here can give.
    """
    from edgewise import targets

    with tempfile.TemporaryDirectory() as scratch:
        job = resolve_recipe(dataclasses.replace(recipe, stages=()), Path(scratch), on_calibration=True)
    for measure in (*objectives, *(bound.measure for bound in limits)):
        name = measure.on(recipe.targets)
        if name not in recipe.targets:
            raise RequestError(
                f"{measure} is of a target that the recipe writes no file for; it writes {', '.join(recipe.targets)}: name it with "
                "--target"
            )
        if measure.quantity.name in ("latency", "ms", "peak_memory") and targets.get(name).load is None:
            raise RequestError(
                f"{measure}: the runtime of {name} does not exist on this machine, so that no file of it is timed or run here"
            )
    return job
