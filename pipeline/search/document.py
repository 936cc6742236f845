"""What a search came to, as one document: for programs, and for the page."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.search.quantities import Measure, read_bound, read_measure
from edgewise.search.records import Record, choose_best, find_front, read_records
from edgewise.search.study import Request, settings_of
from edgewise.store.json_values import decode, encode
from edgewise.store.reading import read_json
from edgewise.store.whole import write_whole

if TYPE_CHECKING:
    from optuna.study import Study

FILE, SCHEMA, KIND = "report.json", 1, "search"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The trial that was taken, and what the test set said of it."""

    number: int
    why: str
    verdict: str
    """Of the file on the test set, and of every limit there, the worst."""
    reason: str
    looked_at: int
    """Finished trials that it was chosen from."""
    figures: Mapping[str, Sequence[float]]
    """Measure -> value and interval on the test set."""
    images: int
    """Test images."""
    file: str | None
    """The file to take, below the search's folder; None where none passed."""
    target: str
    precision: str

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        fields: dict[str, Any] = encode(self)
        return fields


@dataclass(frozen=True, kw_only=True)
class Document:
    """A search as far as it has come."""

    request: Request
    settings: Mapping[str, Any]
    trials: Sequence[Record]
    importances: Mapping[str, Mapping[str, float]]
    """Objective -> parameter -> its share in what the objective varies by."""
    choice: Choice | None = None
    ended: str = ""
    """Why it ended; empty while it goes on."""
    storage: str = ""
    written: float = field(default_factory=time.time)

    @property
    def finished(self) -> list[Record]:
        """Trials that count."""
        return [record for record in self.trials if record.is_finished]

    @property
    def front(self) -> list[Record]:
        """The trials that no other is better than."""
        return find_front(self.trials, self.request.objectives)

    @property
    def reuse(self) -> dict[str, float]:
        """What all trials together took from the store and computed."""
        names = ("reused", "reused_seconds", "computed", "computed_seconds")
        return {name: round(sum(record.uses.get(name, 0.0) for record in self.trials), 3) for name in names}

    def to_json(self) -> dict[str, Any]:
        """The document of a search's ``report.json``."""
        request = self.request
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "name": request.name,
            "space": request.space,
            "identity": encode(dict(request.identity)),
            "objectives": [
                {"name": str(m), "direction": m.direction, "unit": m.quantity.unit} for m in request.objectives
            ],
            "limits": [str(bound) for bound in request.limits],
            "goals": [str(bound) for bound in request.goals],
            "sampler": request.sampler,
            "storage": self.storage,
            "settings": encode(dict(self.settings)),
            "finished": len(self.finished),
            "feasible": sum(record.is_feasible for record in self.trials),
            "reuse": self.reuse,
            "front": [record.number for record in self.front],
            "importances": {name: dict(shares) for name, shares in self.importances.items()},
            "best": None if self.choice is None else self.choice.to_json(),
            "ended": self.ended,
            "trials": [record.to_json() for record in self.trials],
        }

    def write(self, folder: Path) -> Path:
        """Write ``folder/report.json`` whole and return its path."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_whole(folder / FILE, text + "\n")


def read_document(folder: Path) -> Document:
    """The document that a search wrote into ``folder``. Raises RequestError where there is none that can be read."""
    path = folder / FILE
    try:
        return _decode_document(read_json(path))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; give the folder that a search wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is no report of a search: {error}; run the search again to renew it") from error


def _decode_document(value: Any) -> Document:
    request = Request(
        name=value["name"],
        space=value["space"],
        objectives=tuple(read_measure(entry["name"]) for entry in value["objectives"]),
        limits=tuple(read_bound(text, "limits") for text in value["limits"]),
        goals=tuple(read_bound(text, "goals") for text in value["goals"]),
        sampler=value["sampler"],
        identity=value["identity"],
    )
    return Document(
        request=request,
        settings=value["settings"],
        trials=[_decode_record(entry) for entry in value["trials"]],
        importances=value["importances"],
        choice=None if value["best"] is None else decode(Choice, value["best"], "best"),
        ended=value["ended"],
        storage=value["storage"],
    )


def _decode_record(value: Mapping[str, Any]) -> Record:
    return decode(Record, {name: entry for name, entry in value.items() if name != "feasible"}, "trials")


def make_document(
    study: Study, request: Request, storage: str, choice: Choice | None = None, ended: str = ""
) -> Document:
    """The document of a study as it is now."""
    return Document(
        request=request,
        settings=settings_of(study),
        trials=read_records(study),
        importances=measure_importances(study, request.objectives),
        choice=choice,
        ended=ended,
        storage=storage,
    )


_FEWEST = 8
"""Trials with files below which no importance is told."""


def measure_importances(study: Study, objectives: Sequence[Measure]) -> dict[str, dict[str, float]]:
    """Each parameter's share in what an objective varies by over the trials that came to a file (functional ANOVA over a random
    forest, Hutter et al. 2014), the largest first; empty for few trials, or where nothing varies."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < _FEWEST:
        return {}
    shares: dict[str, dict[str, float]] = {}
    for index, measure in enumerate(objectives):
        with contextlib.suppress(ValueError, RuntimeError, ZeroDivisionError):
            found = get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(seed=0), target=_value_at(index), params=None
            )
            if found and all(value == value for value in found.values()):
                shares[str(measure)] = {name: float(value) for name, value in found.items()}
    return shares


def _value_at(index: int) -> Any:
    return lambda trial: trial.values[index]


def summarize(document: Document) -> list[str]:
    """What a terminal is told at the end."""
    finished, front = document.finished, document.front
    stopped = sum(record.fate == "stopped" for record in finished)
    reuse = document.reuse
    lines = [
        f"{len(finished)} trials finished, {stopped} of them stopped early; {sum(r.is_feasible for r in finished)} within the "
        f"limits, {len(front)} on the front.",
        f"Reused from the store: {reuse['reused']:.0f} results that took {reuse['reused_seconds']:.0f} s; computed: "
        f"{reuse['computed']:.0f} in {reuse['computed_seconds']:.0f} s.",
    ]
    if document.ended:
        lines.append(f"Ended: {document.ended}.")
    return lines


def best_of(document: Document) -> tuple[Record, str] | None:
    """The trial to take, and why."""
    return choose_best(document.trials, document.request.objectives, document.request.goals)
