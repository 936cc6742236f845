"""Workers: as many finished trials as were wanted, none twice, whoever is killed; times of one machine alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgewise import recipes
from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.search import alive, records, worker
from edgewise.search.alive import ALIVE, PARKED, Observer, describe_worker, pulse, retry_trial
from edgewise.search.quantities import read_bound, read_objectives
from edgewise.search.records import choose_best, find_front, meets_goals, read_records
from edgewise.search.space import Space, SpaceError
from edgewise.search.storage import open_storage
from edgewise.search.study import Request, join_study
from edgewise.search.trial import Judge, Outcome
from edgewise.search.worker import Worker

optuna = pytest.importorskip("optuna")
FORK = multiprocessing.get_context("fork")
OBJECTIVES = read_objectives(["top1", "latency"])


def space(trial: Any) -> Recipe:
    import dataclasses

    share = trial.suggest_float("share", 0.1, 0.9, step=0.01)
    return dataclasses.replace(recipes.quantize_only(), seed=round(100 * share))


SLOW = "EDGEWISE_TEST_SLOW_TRIALS"


def measured(recipe: Recipe, folder: Path, judge: Judge, say: Any = None) -> Outcome:
    """In place of a run: figures made from the recipe's seed, within a moment."""
    time.sleep(0.02 if os.environ.get(SLOW) is None else 0.12)
    share = recipe.seed / 100
    figures = {"top1": (share, share - 0.01, share + 0.01), "latency": (share**2, share**2, share**2)}
    excesses = {"gates@onnx": 0.0, "drop=0.5": 0.3 - share}
    return Outcome(rung="files", reason="", figures=figures, excesses=excesses, verdict="pass", precision="int8")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_trial", measured)
    monkeypatch.setattr(worker, "POLL", 0.05)


def make_worker(out: Path, trials: int, function: Any = space, **fields: Any) -> Worker:
    request = Request(name="s", space="s.py:space", objectives=OBJECTIVES, trials=trials, identity={"a": 1}, **fields)
    storage = open_storage(None, out, retry_trial)
    study = join_study(storage, request, 1, make=True)
    judge = Judge(objectives=OBJECTIVES)
    return Worker(
        study=study, storage=storage, request=request, space=Space(reference="s.py:space", function=function), judge=judge,
        out=out, say=lambda text: None,
    )  # fmt: skip


def work(out: Path, trials: int) -> None:
    make_worker(out, trials).work()


def finished(out: Path) -> list[records.Record]:
    study = optuna.load_study(study_name="s", storage=open_storage(None, out, retry_trial))
    return [record for record in read_records(study) if record.is_finished]


def test_workers_killed_at_random_end_with_as_many_trials_as_were_wanted_and_none_twice(
    quick: None, tmp_path: Path
) -> None:
    make_worker(tmp_path, 60)
    chance, kills = random.Random(5), 0
    crew = [FORK.Process(target=work, args=(tmp_path, 60)) for _ in range(2)]
    for process in crew:
        process.start()
    end = time.monotonic() + 120
    while any(process.is_alive() for process in crew) and time.monotonic() < end:
        time.sleep(chance.uniform(0.05, 0.2))
        living = [index for index, process in enumerate(crew) if process.is_alive()]
        if living and kills < 5:
            index, kills = chance.choice(living), kills + 1
            os.kill(crew[index].pid or 0, signal.SIGKILL)
            crew[index].join()
            crew[index] = FORK.Process(target=work, args=(tmp_path, 60))
            crew[index].start()
    for process in crew:
        process.join(60)
    work(tmp_path, 60)
    ended = finished(tmp_path)
    assert kills == 5 and len(ended) == 60
    assert max(Counter(record.digest for record in ended).values()) == 1


def test_a_later_command_wants_more_and_goes_on(quick: None, tmp_path: Path) -> None:
    assert make_worker(tmp_path, 3).work() == "3 trials are finished"
    assert make_worker(tmp_path, 3).work() == "3 trials are finished"
    assert make_worker(tmp_path, 5).work() == "5 trials are finished"
    assert len(finished(tmp_path)) == 5


def test_it_ends_when_the_goals_are_met_or_the_time_is_over(quick: None, tmp_path: Path) -> None:
    goal = (read_bound("top1=0.31", "--goal"),)
    assert make_worker(tmp_path / "a", 500, goals=goal).work() == "the goals are met"
    late = make_worker(tmp_path / "b", 500)
    late.until = time.monotonic() + 0.5
    assert "the time is over, after" in late.work()


def test_a_space_that_holds_few_recipes_ends_by_itself(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "DRAWS", 12)
    few = make_worker(tmp_path, 50, lambda trial: space(_Coarse(trial)))
    assert "had been tried before" in few.work()
    ended = finished(tmp_path)
    assert 1 <= len(ended) <= 3 and len({record.digest for record in ended}) == len(ended)


def test_a_space_is_tried_to_its_last_recipes(quick: None, tmp_path: Path) -> None:
    """Once a proposal is known the next are drawn at random: the sampler would stay near the best, which are all known."""
    drawn: list[tuple[int, str]] = []

    def listening(trial: Any) -> Recipe:
        drawn.append((trial.number, type(trial.study.sampler).__name__))
        return space(_Few(trial))

    assert make_worker(tmp_path, 17, listening).work() == "17 trials are finished"
    study = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path, retry_trial))
    known = {record.number for record in read_records(study) if record.fate == "dropped"}
    assert known, "nothing was proposed twice"
    samplers = dict(drawn)
    for number, sampler in samplers.items():
        assert sampler == ("RandomSampler" if number - 1 in known else "TPESampler"), number


class _Few:
    """A trial that knows twenty-one values, of which the best ones lie together."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
        return float(self.trial.suggest_float(name, 0.3, 0.5, step=step))


class _Coarse:
    """A trial that knows three values."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
        return float(self.trial.suggest_categorical(name, [0.3, 0.5, 0.7]))


def test_a_space_that_fails_loses_no_trial(quick: None, tmp_path: Path) -> None:
    make_worker(tmp_path, 3).work()

    def broken(trial: Any) -> Any:
        trial.suggest_float("share", 0.1, 0.9, step=0.01)

    with pytest.raises(SpaceError, match="returned NoneType"):
        make_worker(tmp_path, 9, broken).work()
    assert len(finished(tmp_path)) == 3
    make_worker(tmp_path, 5).work()
    assert len(finished(tmp_path)) == 5


def test_values_that_make_no_recipe_are_a_stopped_trial_with_its_reason(quick: None, tmp_path: Path) -> None:
    def picky(trial: Any) -> Recipe:
        if trial.suggest_float("share", 0.1, 0.9, step=0.01) > 0.5:
            raise RequestError(f"{trial.params['share']:.2f} is too much")
        return space(trial)

    make_worker(tmp_path, 12, picky).work()
    ended = finished(tmp_path)
    stopped = [record for record in ended if record.fate == "stopped"]
    assert len(ended) == 12 and stopped and all(record.values["share"] > 0.5 for record in stopped)
    assert {(record.rung, record.reason) for record in stopped} == {
        ("plan", f"{record.values['share']:.2f} is too much") for record in stopped
    }
    assert not any(record.is_feasible for record in stopped)


def test_trial_after_trial_refused_for_one_reason_ends_the_search(quick: None, tmp_path: Path) -> None:
    def never(trial: Any) -> Recipe:
        trial.suggest_float("share", 0.1, 0.9, step=0.01)
        raise RequestError("the folder of images is gone")

    with pytest.raises(
        RequestError, match="last 8 trials were all refused before any work: the folder of images is gone"
    ):
        make_worker(tmp_path, 50, never).work()
    assert len(finished(tmp_path)) == worker.HOPELESS


def test_an_interrupted_trial_is_tried_again(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Outcome:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_worker(tmp_path, 1).work()
    make_worker(tmp_path, 1).work()
    (ended,) = finished(tmp_path)
    study = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path, retry_trial))
    assert study.get_trials()[0].params == ended.values and ended.number == 1


def running(out: Path) -> tuple[Any, Any, Any]:
    storage = open_storage(None, out, retry_trial)
    study = optuna.create_study(storage=storage)
    number = study.ask().number
    return storage, study, study.get_trials()[number]


def test_a_living_workers_trial_is_left_alone_and_a_dead_ones_is_swept_once(tmp_path: Path) -> None:
    storage, study, trial = running(tmp_path)
    with pulse(storage, trial):
        assert Observer(storage).sweep(study) == []
    gone = FORK.Process(target=os._exit, args=(0,))
    gone.start()
    gone.join()
    storage.set_trial_user_attr(trial._trial_id, ALIVE, describe_worker(trial.number) | {"pid": gone.pid})
    first, second = Observer(storage).sweep(study), Observer(storage).sweep(study)
    assert (first, second) == ([0], [])
    states = Counter(t.state.name for t in study.get_trials())
    assert states == {"FAIL": 1, "WAITING": 1}


def test_a_process_that_took_a_dead_ones_number_is_not_it(tmp_path: Path) -> None:
    mine = describe_worker(0)
    assert not alive.is_process_gone(mine)
    assert alive.is_process_gone(mine | {"start": "1"})
    assert not alive.is_process_gone(mine | {"on": "another machine", "pid": 1})


def test_a_worker_elsewhere_is_dead_once_its_sign_of_life_stays_the_same(tmp_path: Path) -> None:
    storage, study, trial = running(tmp_path)
    elsewhere = describe_worker(trial.number) | {"on": "another machine"}
    storage.set_trial_user_attr(trial._trial_id, ALIVE, elsewhere)
    observer = Observer(storage, grace=0.2)
    assert observer.sweep(study) == []
    time.sleep(0.3)
    storage.set_trial_user_attr(trial._trial_id, ALIVE, elsewhere | {"beat": 1})
    assert observer.sweep(study) == []
    time.sleep(0.3)
    assert observer.sweep(study) == [0]


def test_a_trial_that_outlives_many_workers_is_given_up(tmp_path: Path) -> None:
    _, study, trial = running(tmp_path)
    for _ in range(alive.MOST_RETRIES + 3):
        retry_trial(study, trial)
        waiting = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
        if not waiting:
            break
        trial = study.get_trials()[study.ask().number]
    assert not study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    assert len(study.get_trials()) == alive.MOST_RETRIES + 1


def test_times_are_taken_on_one_machine_and_others_leave_them_to_it(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_worker(tmp_path, 2).work()  # this machine's times count
    with monkeypatch.context() as patch:
        patch.setattr(worker, "machine_name", lambda: "aarch64 another")
        other = make_worker(tmp_path, 4)
        assert "2 trials wait for their times from a worker on" in other.work()
    assert len(finished(tmp_path)) == 2
    Observer(other.storage, grace=0.0).sweep(other.study)
    parked = [trial for trial in other.study.get_trials() if trial.user_attrs.get(PARKED)]
    assert [trial.state.name for trial in parked] == ["RUNNING", "RUNNING"]
    make_worker(tmp_path, 4).work()
    ended = finished(tmp_path)
    assert len(ended) == 4 and len({record.machine for record in ended}) == 1


def record(number: int, top1: float, latency: float, *, excess: float = 0.0, verdict: str = "pass") -> records.Record:
    figures = {"top1": (top1, top1 - 0.01, top1 + 0.01), "latency": (latency, latency - 0.02, latency + 0.02)}
    return records.Record(
        number=number, fate="whole", values={}, figures=figures, excesses={"drop": excess}, verdict=verdict
    )


def test_the_front_holds_what_nothing_feasible_is_better_than() -> None:
    trials = [record(0, 0.9, 0.5), record(1, 0.8, 0.6), record(2, 0.95, 0.9), record(3, 0.99, 0.1, excess=0.2)]
    assert [entry.number for entry in find_front(trials, OBJECTIVES)] == [2, 0]


def test_the_choice_is_the_fastest_that_is_proven_and_of_equals_the_most_accurate() -> None:
    trials = [record(0, 0.95, 0.50), record(1, 0.94, 0.49), record(2, 0.93, 0.30, verdict="not-checked")]
    best = choose_best(trials, OBJECTIVES)
    assert best is not None and best[0].number == 0 and "cannot be told apart" in best[1]
    assert "of 2 of the 3 trials on the front that passed every gate within" in best[1]
    alone = choose_best(trials[2:], OBJECTIVES)
    assert alone is not None and alone[0].number == 2 and "decide not all of its gates" in alone[1]
    assert choose_best([record(0, 0.9, 0.5, excess=0.1)], OBJECTIVES) is None


def test_goals_are_met_within_the_limits_alone() -> None:
    goals = [read_bound("top1=0.94", "--goal"), read_bound("latency=0.6", "--goal")]
    assert meets_goals(record(0, 0.95, 0.5), goals)
    assert not meets_goals(record(0, 0.95, 0.7), goals)
    assert not meets_goals(record(0, 0.95, 0.5, excess=0.1), goals)
