"""The trials of a study as plain values: what the page, the report and the choice are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgewise.search.quantities import Bound, Figure, Measure
from edgewise.search.trial import Outcome
from edgewise.store.json_values import encode

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

OUTCOME, RECIPE, DIGEST, FOLDER, MACHINE, TOLD = (
    f"edgewise:{name}" for name in ("outcome", "recipe", "digest", "folder", "machine", "told")
)
"""User attributes of a trial."""
Fate = Literal["whole", "stopped", "running", "untimed", "dropped"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial."""

    number: int
    fate: Fate
    """whole: came to a file; stopped: told infeasible before; running; untimed: waits for its times; dropped: not counted."""
    values: Mapping[str, Any]
    """What the space was answered."""
    reason: str = ""
    rung: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    excesses: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""
    precision: str = ""
    seconds: float = 0.0
    uses: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    """As Python text."""
    digest: str = ""
    folder: str = ""
    """Relative to the search's, or as its worker named it."""
    machine: str = ""
    ended: float = 0.0
    """In seconds of the epoch."""

    @property
    def is_finished(self) -> bool:
        """Whether it counts among the trials that were wanted."""
        return self.fate in ("whole", "stopped")

    @property
    def is_feasible(self) -> bool:
        """Whether nothing that is limited is broken."""
        return self.fate == "whole" and all(excess <= 0 for excess in self.excesses.values())

    def to_json(self) -> dict[str, Any]:
        """This trial as plain JSON types."""
        return {**encode(self), "feasible": self.is_feasible}


def read_records(study: Study) -> list[Record]:
    """Every trial of a study, in the order of their numbers."""
    return [read_record(trial) for trial in study.get_trials(deepcopy=False)]


def read_record(trial: FrozenTrial) -> Record:
    """One trial as its attributes tell it."""
    attributes = trial.user_attrs
    outcome = attributes.get(OUTCOME) or {}
    return Record(
        number=trial.number,
        fate=_fate_of(trial),
        values=dict(trial.params),
        reason=str(outcome.get("reason") or attributes.get(TOLD, "")),
        rung=str(outcome.get("rung", "")),
        figures={
            name: (float(v), float(low), float(high)) for name, (v, low, high) in outcome.get("figures", {}).items()
        },
        excesses=dict(outcome.get("excesses", {})),
        verdict=str(outcome.get("verdict", "")),
        precision=str(outcome.get("precision", "")),
        seconds=float(outcome.get("seconds", 0.0)),
        uses=dict(outcome.get("uses", {})),
        recipe=str(attributes.get(RECIPE, "")),
        digest=str(attributes.get(DIGEST, "")),
        folder=str(attributes.get(FOLDER, "")),
        machine=str(attributes.get(MACHINE, "")),
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )


def _fate_of(trial: FrozenTrial) -> Fate:
    from optuna.trial import TrialState

    from edgewise.search.alive import PARKED

    fates: dict[TrialState, Fate] = {
        TrialState.COMPLETE: "whole",
        TrialState.PRUNED: "stopped",
        TrialState.FAIL: "dropped",
    }
    if trial.state == TrialState.RUNNING:
        return "untimed" if trial.user_attrs.get(PARKED) else "running"
    return fates.get(trial.state, "dropped")


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """An outcome as a trial's attribute."""
    fields: dict[str, Any] = encode(outcome)
    return fields


def find_front(records: Sequence[Record], objectives: Sequence[Measure]) -> list[Record]:
    """The feasible trials that no other is better than in one objective and as good in all, in the order of the first."""
    feasible = [
        record for record in records if record.is_feasible and all(str(m) in record.figures for m in objectives)
    ]
    losses = {record.number: [_loss(record, measure) for measure in objectives] for record in feasible}
    front = [
        record
        for record in feasible
        if not any(_dominates(losses[other.number], losses[record.number]) for other in feasible)
    ]
    return sorted(front, key=lambda record: losses[record.number])


def _loss(record: Record, measure: Measure) -> float:
    value = record.figures[str(measure)][0]
    return -value if measure.quantity.better == "higher" else value


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def meets_goals(record: Record, goals: Sequence[Bound]) -> bool:
    """Whether a trial reaches every goal, within the limits."""
    return record.is_feasible and all(goal.is_met(record.figures.get(str(goal.measure))) for goal in goals)


def choose_best(
    records: Sequence[Record], objectives: Sequence[Measure], goals: Sequence[Bound] = ()
) -> tuple[Record, str] | None:
    """The trial to judge on the test set, and why it; None where none is feasible.

    Of the front those whose gates all passed come before undecided ones, and those that reach the goals before others. Of
    what is left it is the one that is best in the first objective that is no accuracy; those whose intervals overlap its own
    cannot be told apart from it, and of them the most accurate is taken.
    """
    front = find_front(records, objectives)
    if not front:
        return None
    reached = [record for record in front if goals and meets_goals(record, goals)] or front
    proven = [record for record in reached if record.verdict == "pass"] or reached
    costs = [measure for measure in objectives if measure.quantity.name not in ("top1", "drop")]
    accuracies = [measure for measure in objectives if measure not in costs]
    if not costs:
        best = min(proven, key=lambda record: [_loss(record, measure) for measure in accuracies])
        return best, f"the best in {', '.join(map(str, accuracies))} of {_count(front, reached, proven)}"
    first = min(proven, key=lambda record: _loss(record, costs[0]))
    alike = [record for record in proven if _overlap(record, first, costs[0])]
    best = min(alike, key=lambda record: [_loss(record, measure) for measure in (*accuracies, *costs)])
    why = f"the lowest {costs[0]} of {_count(front, reached, proven)} within the limits"
    if len(alike) > 1:
        why += f", and the most accurate of {len(alike)} that cannot be told apart in it"
    return best, why + ("" if best.verdict == "pass" else "; the calibration images decide not all of its gates")


def _overlap(record: Record, first: Record, measure: Measure) -> bool:
    """Whether the intervals of two trials overlap, so that what is better lies within what was measured."""
    (_, low, high), (_, other_low, other_high) = record.figures[str(measure)], first.figures[str(measure)]
    return low <= other_high and other_low <= high


def _count(front: Sequence[Record], reached: Sequence[Record], proven: Sequence[Record]) -> str:
    """Among how many was chosen, and how they were told from the others of the front."""
    if len(front) == 1:
        return "the only trial on the front"
    whole = f"the {len(front)} trials on the front"
    those = [
        words
        for words, part, of in (
            ("reach every goal", reached, front),
            ("passed every gate", proven, reached),
        )
        if len(part) < len(of)
    ]
    return f"{len(proven)} of {whole} that {' and '.join(those)}" if those else whole
