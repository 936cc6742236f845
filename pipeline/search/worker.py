"""A worker: asks for a trial, runs it, tells what came of it, until as many are finished as were wanted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.search import alive, records
from edgewise.search.alive import PARKED, Observer, pulse
from edgewise.search.recipe_text import write_call_text, write_recipe_text
from edgewise.search.records import Record, read_record, read_records
from edgewise.search.space import Space, SpaceError, digest_recipe
from edgewise.search.study import WANTED, Request, make_sampler, settings_of
from edgewise.search.trial import Judge, Outcome, run_trial
from edgewise.store.machine import machine_name

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

POLL = 2.0
"""Seconds between two looks at a study while others work."""
DRAWS = 40
"""Proposals in a row that may be known already before the space counts as tried."""
HOPELESS = 8
"""Trials in a row that may be refused for the same reason."""
TIMING = "edgewise:timing"
"""User attribute of a trial that waits for its times: who is taking them."""


@dataclass
class Worker:
    """One process's part in a search."""

    study: Study
    storage: BaseStorage
    request: Request
    space: Space
    judge: Judge
    out: Path
    say: Callable[[str], None]
    until: float | None = None
    """When to begin no further trial, by ``time.monotonic``."""
    settle: Callable[[], None] = lambda: None
    """What is done once a line was said after which nothing goes on here."""
    after_trial: Callable[[], None] = lambda: None
    """What is done after each trial, as the page written anew."""
    observer: Observer = field(init=False)
    _surplus: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.observer = Observer(self.storage)

    def work(self) -> str:
        """Run trials until there is nothing left to do; why it ended, in words."""
        from edgewise.files.workers import share_workers

        with share_workers():
            return self._work()

    def _work(self) -> str:
        while True:
            self.sweep()
            self._refuse_hopeless()
            if why := self._why_over():
                return why
            if (waiting := self._untimed()) is not None:
                self._take_times(waiting)
            elif not self._may_begin():
                self.settle()
                time.sleep(POLL)
            elif not self._run_next():
                return f"the last {DRAWS} recipes that were proposed had been tried before"
            self.after_trial()

    def sweep(self) -> None:
        """Have trials of dead workers tried again."""
        for number in self.observer.sweep(self.study):
            self.say(f"trial {number} was left by a worker that is no more; its recipe is tried again")

    def _refuse_hopeless(self) -> None:
        """Raise RequestError where trial after trial is refused for one reason: that is of the request, not of their values."""
        last = [record for record in self._records() if record.is_finished][-HOPELESS:]
        if len(last) == HOPELESS and {(r.rung, r.reason) for r in last} == {("plan", last[0].reason)}:
            raise RequestError(f"the last {HOPELESS} trials were all refused before any work: {last[0].reason}")

    def _why_over(self) -> str:
        trials = self._records()
        finished = [record for record in trials if record.is_finished]
        if self.request.goals and any(records.meets_goals(record, self.request.goals) for record in finished):
            return "the goals are met"
        if len(finished) >= self.wanted:
            return f"{len(finished)} trials are finished"
        if self.until is not None and time.monotonic() >= self.until:
            return f"the time is over, after {len(finished)} finished trials"
        untimed = [record for record in trials if record.fate == "untimed"]
        others = [record for record in trials if record.fate == "running"]
        if untimed and not others and not self._is_clock() and len(finished) + len(untimed) >= self.wanted:
            return f"{len(untimed)} trials wait for their times from a worker on {self._clock()}"
        return ""

    @property
    def wanted(self) -> int:
        """Finished trials that are wanted by now: a later command may want more."""
        return int(self.study.user_attrs.get(WANTED, 0))

    def _records(self) -> list[Record]:
        return read_records(self.study)

    def _may_begin(self) -> bool:
        """Whether another trial is wanted beside those that are finished, at work or waiting for their times."""
        return sum(record.fate != "dropped" for record in self._records()) < self.wanted

    def _run_next(self) -> bool:
        """Ask for a trial and run it; False where the space has nothing new."""
        for draw in range(DRAWS):
            with self._proposing(anything=draw > 0):
                if self._run_unless_known(self.study.ask()):
                    return True
        return False

    def _run_unless_known(self, trial: Trial) -> bool:
        """Run a trial, or tell why it is none; False where another trial asks for the same."""
        with pulse(self.storage, self._frozen(trial.number)):
            recipe = self._make_recipe(trial)
            if recipe is None:
                return True
            if self._is_surplus(trial.number):
                self._drop(trial.number, "one more than was wanted: another worker began it at the same time")
                return True
            digest = digest_recipe(recipe)
            if (earlier := self._same_recipe(trial.number, digest)) is not None:
                self._drop(trial.number, f"the recipe of trial {earlier}")
                return False
            trial.set_user_attr(records.DIGEST, digest)
            self._run(trial.number, recipe)
            return True

    @contextmanager
    def _proposing(self, *, anything: bool) -> Iterator[None]:
        """Within the block, values are drawn at random where ``anything`` is set.

        A trial asks the study's sampler when the space asks the trial, not only when the study is asked for it.
        """
        usual = self.study.sampler
        try:
            if anything:
                self.study.sampler = make_sampler(self.request, anything=True)
            yield
        finally:
            self.study.sampler = usual

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _make_recipe(self, trial: Trial) -> Recipe | None:
        """The trial's recipe; None, and the trial told infeasible, where its values make none. Raises SpaceError."""
        try:
            return self.space.make_recipe(trial)
        except SpaceError:
            self._drop(trial.number, "the space failed")
            raise
        except RequestError as error:
            self._tell(trial.number, Outcome(rung="plan", reason=str(error), excesses={"recipe": 1.0}))
            return None
        except BaseException:
            self._hand_back(trial.number)
            raise

    def _is_surplus(self, number: int) -> bool:
        """Whether as many trials as are wanted were begun before this one, by workers that looked at the same time."""
        earlier = [record for record in self._records() if record.number < number and record.fate != "dropped"]
        later = [record for record in self._records() if record.number > number and record.is_finished]
        return len(earlier) + len(later) >= self.wanted

    def _same_recipe(self, number: int, digest: str) -> int | None:
        """The number of an earlier trial that asks for the same, finished or at work."""
        for record in self._records():
            if record.number != number and record.digest == digest and record.fate != "dropped":
                return record.number
        return None

    def _run(self, number: int, recipe: Recipe) -> None:
        """Run a trial's recipe and tell what came of it; interrupted, hand it back."""
        folder = self.out / "trials" / f"{number:04d}"
        self._note(number, records.FOLDER, self._shown(folder))
        self._note(number, records.MACHINE, machine_name())
        self._note(number, records.RECIPE, self._recipe_text(number, recipe))
        self.say(f"trial {number}: {describe_values(self._frozen(number).params)} …")
        try:
            outcome = run_trial(recipe, folder, self.judge, lambda text: self.say(f"trial {number}: {text}"))
            self._conclude(number, outcome)
        except BaseException:
            self._hand_back(number)
            raise

    def _conclude(self, number: int, outcome: Outcome) -> None:
        """Tell an outcome, or have a worker take its times where those of this machine do not count."""
        if outcome.is_whole and self.request.timed and not self._is_clock():
            self._note(number, records.OUTCOME, records.outcome_fields(outcome))
            self._note(number, PARKED, True)
            self.say(f"trial {number} waits for its times from a worker on {self._clock()}")
            return
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        frozen = self._frozen(number)
        self._note(number, records.OUTCOME, records.outcome_fields(outcome))
        for name, excess in outcome.excesses.items():
            self.storage.set_trial_system_attr(frozen._trial_id, f"constraints:{name}", float(excess))
        if outcome.is_whole:
            values = [outcome.figures[str(measure)][0] for measure in self.request.objectives]
            self.study.tell(number, values, skip_if_finished=True)
        else:
            self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        self.say(describe_record(read_record(self._frozen(number)), self.request))

    def _drop(self, number: int, why: str) -> None:
        """Fail a trial that is not counted."""
        from optuna.trial import TrialState

        self._note(number, records.TOLD, why)
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _hand_back(self, number: int) -> None:
        """Have the values of an interrupted trial tried again by whoever goes on."""
        frozen = self._frozen(number)
        if not frozen.state.is_finished() and not frozen.user_attrs.get(PARKED):
            self._drop(number, "interrupted")
            alive.retry_trial(self.study, frozen)

    def _note(self, number: int, name: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._frozen(number)._trial_id, name, value)

    def _shown(self, folder: Path) -> str:
        """A trial's folder as others find it: below the search's own where they share that."""
        return str(folder.relative_to(self.out))

    def _recipe_text(self, number: int, recipe: Recipe) -> str:
        about = f"Trial {number} of the search {self.request.name}, of the space {self.space.reference}."
        text = write_recipe_text(recipe, "recipe", about)
        return text or write_call_text(self.space.reference, self._frozen(number).params, "recipe", about)

    def _clock(self) -> str:
        """The machine whose times count."""
        return str(settings_of(self.study)["machine"])

    def _is_clock(self) -> bool:
        return machine_name() == self._clock()

    def _untimed(self) -> FrozenTrial | None:
        """A trial that waits for its times, where this machine's count and nobody is at it."""
        if not self.request.timed or not self._is_clock():
            return None
        for trial in self.study.get_trials(deepcopy=False):
            at_it = trial.user_attrs.get(TIMING)
            taken = at_it is not None and not alive.is_process_gone(at_it) and at_it.get("on") == alive.machine_mark()
            if not trial.state.is_finished() and trial.user_attrs.get(PARKED) and not taken:
                return trial
        return None

    def _take_times(self, trial: FrozenTrial) -> None:
        """Run a trial's recipe once more where its times count: what the store holds of it is taken from there.

        Should two take the same, the second tells nothing.
        """
        from optuna.trial import FixedTrial

        number = trial.number
        self._note(number, TIMING, alive.describe_worker(number))
        self.say(f"trial {number}: measured again, on the machine whose times count")
        recipe = self.space.make_recipe(FixedTrial(dict(trial.params)))
        folder = self.out / "trials" / f"{number:04d}"
        self._note(number, records.MACHINE, machine_name())
        self._tell(number, run_trial(recipe, folder, self.judge))


def describe_values(values: Mapping[str, Any]) -> str:
    """What a space was answered, in words."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {text}" for name, text in shown.items()) or "the space asks for nothing"


def describe_record(record: Record, request: Request) -> str:
    """One line on a finished trial."""
    if record.fate != "whole":
        return f"trial {record.number} is stopped at its {record.rung or 'start'}: {record.reason}"
    figures = ", ".join(
        f"{name} {show_figure(name, record.figures[name][0])}"
        for name in map(str, request.objectives)
        if name in record.figures
    )
    within = "" if record.is_feasible else f"; beyond the limits: {record.reason}"
    reused = record.uses.get("reused_seconds", 0.0)
    return f"trial {record.number}: {figures}{within} ({record.seconds:.0f} s, {reused:.0f} s of results reused)"


def show_figure(name: str, value: float) -> str:
    """A measured value as people read it."""
    from edgewise.report import numbers

    kind = name.partition("@")[0]
    if kind in ("top1", "drop"):
        text = f"{100 * value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", numbers.MINUS)
        return f"{text} %" if kind == "top1" else f"{text} points"
    if kind in ("bytes", "peak_memory"):
        return numbers.size(round(value))
    return numbers.ratio(value) if kind == "latency" else f"{numbers.significant(value)} ms"


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
