"""The study that workers share: made once, joined by everybody else, refused to those who search for something else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.search.quantities import Bound, Measure
from edgewise.store.entries import key_of
from edgewise.store.machine import machine_name

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study

SAMPLERS = ("tpe", "nsga2")
IDENTITY, WANTED, SETTINGS = "edgewise:identity", "edgewise:trials", "edgewise:settings"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a search is asked for; everybody who joins it asks for the same."""

    name: str
    space: str
    objectives: tuple[Measure, ...]
    limits: tuple[Bound, ...] = ()
    goals: tuple[Bound, ...] = ()
    trials: int | None = None
    """Finished trials that are wanted; None: as the study says."""
    sampler: str = "tpe"
    seed: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What the figures of a trial rest on: the space's code, what it changes, images, weights, what is weighed."""

    @property
    def timed(self) -> bool:
        """Whether anything that is weighed belongs to the machine that measured it."""
        return any(m.quantity.timed for m in (*self.objectives, *(b.measure for b in (*self.limits, *self.goals))))


def join_study(
    storage: BaseStorage, request: Request, threads: int, first: Sequence[Mapping[str, Any]] = (), *, make: bool
) -> Study:
    """The study of the request: made where there is none and ``make`` is set.

    ``threads``: what a worker computes with, which is part of what results are kept under; the first one's holds for all.
    ``first``: values that a study that is made begins with.
    Raises RequestError for a study of another search under the name, and where there is none to join.
    """
    study = _make_study(storage, request, first) if make else _load_study(storage, request)
    _check_identity(study, request)
    _fill_settings(study, threads)
    if request.trials is not None:
        study.set_user_attr(WANTED, request.trials)
    return study


def _make_study(storage: BaseStorage, request: Request, first: Sequence[Mapping[str, Any]]) -> Study:
    import optuna

    directions = [measure.direction for measure in request.objectives]
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=request.name,
            directions=directions,
            sampler=make_sampler(request),
            load_if_exists=True,
        )
    except Exception as error:
        if type(error).__name__ in ("IntegrityError", "StorageInternalError"):  # made by another worker meanwhile
            return _load_study(storage, request)
        raise
    if [direction.name.lower() for direction in study.directions] == directions and IDENTITY not in study.user_attrs:
        study.set_metric_names([str(measure) for measure in request.objectives])
        for values in first:
            study.enqueue_trial(dict(values), skip_if_exists=True)
        study.set_user_attr(IDENTITY, dict(request.identity))
    return study


_WAIT = 60.0
"""Seconds that a worker waits for the study that it is to join."""


def _load_study(storage: BaseStorage, request: Request) -> Study:
    import optuna

    end = time.monotonic() + _WAIT
    while True:
        try:
            study = optuna.load_study(study_name=request.name, storage=storage, sampler=make_sampler(request))
            if IDENTITY in study.user_attrs:
                return study
        except KeyError:
            pass
        if time.monotonic() > end:
            raise RequestError(
                f"there is no search {request.name!r} in this storage to join with --worker; start it without --worker first"
            )
        time.sleep(1)


def _check_identity(study: Study, request: Request) -> None:
    """Raise RequestError, naming what differs, where the study is of another search."""
    theirs = study.user_attrs.get(IDENTITY)
    if theirs is None:
        raise RequestError(f"{_where(request)} holds a study that no edgewise search made; {_REPAIR}")
    ours = dict(request.identity)
    other = [key for key in sorted({*ours, *theirs}) if key_of(value=ours.get(key)) != key_of(value=theirs.get(key))]
    if other:
        words = "; ".join(f"{key} was {_short(theirs.get(key))}, is {_short(ours.get(key))}" for key in other)
        raise RequestError(
            f"{_where(request)} holds the trials of another search, whose figures cannot be laid beside these: {words}. {_REPAIR}"
        )


_REPAIR = "Name another search with --name or another folder with --out; nothing was changed"


def _where(request: Request) -> str:
    return f"the study {request.name!r}"


def _short(value: Any) -> str:
    """A value of an identity as one reads it; of digests their beginnings."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items()) or "nothing"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "nothing"
    text = str(value)
    return text[:10] + "…" if len(text) == 64 else text


def _fill_settings(study: Study, threads: int) -> None:
    if SETTINGS not in study.user_attrs:
        study.set_user_attr(SETTINGS, {"threads": threads, "machine": machine_name(), "began": time.time()})


def settings_of(study: Study) -> dict[str, Any]:
    """Threads of a worker, the machine whose times count, and when the search began."""
    return dict(study.user_attrs[SETTINGS])


def make_sampler(request: Request, *, anything: bool = False) -> BaseSampler:
    """What proposes values. ``anything``: at random, for where it proposes only what is known.

    Each worker draws differently: two that drew alike would run the same trials.
    """
    import os

    import optuna

    seed = (request.seed * 1_000_003 + int.from_bytes(os.urandom(4), "little")) % 2**32
    if anything:
        return optuna.samplers.RandomSampler(seed=seed)
    if request.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(20, max(4, (request.trials or 50) // 3)))
    first = max(4, min(10, (request.trials or 50) // 3))
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=first, multivariate=True, group=True, constant_liar=True
    )
