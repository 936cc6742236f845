"""What to do next where a target has no file that passed: the file that came closest, by how much, and what would help.

Everything is computed from what the run measured. A linear guess is called one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.measure.paired import images_to_decide
from edgewise.report import numbers
from edgewise.report.rows import ArtifactFile, Row
from edgewise.store.json_values import encode_fields

MOST = 3
"""Changes that are proposed."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What keeps a run from delivering, and what would most likely help, the best first."""

    closest: str
    """The row that came closest: its name, its file, its gate and by how much it missed."""
    changes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    def __str__(self) -> str:
        return "\n".join([self.closest, *(f"{number}. {change}" for number, change in enumerate(self.changes, 1))])


@dataclass(frozen=True, kw_only=True)
class _Miss:
    """One limit that a row did not keep to or was not proven to keep to."""

    gate: str
    decided: bool
    """Whether the limit is exceeded, rather than only not excluded."""
    share: float
    """How far beyond the limit, as a share of it."""
    told: str


def advise_on_run(
    recipe: Mapping[str, Any], rows: Sequence[Row], artifacts: Sequence[ArtifactFile], folder: str = ""
) -> Advice | None:
    """Advice on the run that ``rows`` tell of; None where every target has a file that passed, or nothing was judged.

    ``folder``: where the paths of ``artifacts``, given in the order of their rows, begin.
    """
    limits: Mapping[str, Any] = recipe.get("limits") or {}
    open_ = [row for row in _without_a_pass(rows) if row.reason]
    if not open_:
        return None
    candidates = sorted(open_, key=lambda row: _rank(row, limits, rows[0]))
    best = candidates[0]
    misses = _misses(best, limits, rows[0])
    changes = [change for miss in misses for change in _suggest_changes(miss, best, rows, recipe, limits)]
    return Advice(
        closest=_closest_words(best, rows, misses, artifacts, folder), changes=tuple(dict.fromkeys(changes))[:MOST]
    )


def _without_a_pass(rows: Sequence[Row]) -> list[Row]:
    """The files of targets none of whose files passed; where the run ended before any file, the step that ended it."""
    files = [row for row in rows if row.step == "artifact"]
    if not files:
        return [row for row in rows[-1:] if row.verdict == "fail"]
    target_names = {row.target for row in files if row.verdict == "pass"}
    return [row for row in files if row.target not in target_names]


def _rank(row: Row, limits: Mapping[str, Any], first: Row) -> tuple[bool, float]:
    """Undecided before failed; among those the one that lies least beyond its limits. What was not measured comes last."""
    misses = _misses(row, limits, first)
    return row.verdict == "fail", max((miss.share for miss in misses), default=math.inf)


def _misses(row: Row, limits: Mapping[str, Any], first: Row) -> list[_Miss]:
    """What ``row`` did not keep to; ``first``: the baseline's row."""
    misses = [_accuracy_miss(row, limits), _latency_miss(row, limits, first), _agreement_miss(row, limits)]
    return sorted((miss for miss in misses if miss), key=lambda miss: (not miss.decided, -miss.share))


def _accuracy_miss(row: Row, limits: Mapping[str, Any]) -> _Miss | None:
    tolerance = float(limits.get("max_drop", 0.01))
    if row.accuracy is None:
        return None
    change = row.accuracy.vs_baseline
    worst = -change.ci95[0]
    if worst <= tolerance:
        return None
    is_proven = -change.delta > tolerance
    beyond = (-change.delta if is_proven else worst) - tolerance
    sentence = f"it lost {_points(-change.delta)}" if change.delta < 0 else "it lost nothing"
    sentence += f" of top-1 where {_points(tolerance)} may go"
    if not is_proven:
        sentence += f", but {row.accuracy.n:,} test images cannot exclude a fall of {_points(worst)}"
    return _Miss(gate="accuracy", decided=is_proven, share=beyond / max(tolerance, 1e-3), told=sentence)


def _latency_miss(row: Row, limits: Mapping[str, Any], first: Row) -> _Miss | None:
    tolerance = float(limits.get("max_latency_ratio", 1.0))
    if (row.macs, row.precision) == (first.macs, first.precision):  # as the gate has it: nothing could be saved
        tolerance = max(tolerance, float(limits.get("same_work_ratio", tolerance)))
    if row.latency is None or "of the baseline's time" not in row.reason:
        return None
    low, high = row.latency.ci95
    sentence = f"it takes {numbers.ratio(row.latency.ratio_to_baseline)} the baseline's time on {row.latency.on} where {tolerance:g}× may be"
    if high <= tolerance:
        sentence += ", on a machine too busy to prove it"
    elif low <= tolerance:
        sentence += f", which the clock could not tell ({numbers.ratio(low)} to {numbers.ratio(high)})"
    return _Miss(
        gate="latency", decided=low > tolerance, share=max(high - tolerance, 0.0) / max(tolerance, 1e-3), told=sentence
    )


def _agreement_miss(row: Row, limits: Mapping[str, Any]) -> _Miss | None:
    minimum = float(limits.get("min_agreement", 0.99))
    if row.agreement is None or row.agreement.top1 >= minimum:
        return None
    sentence = f"it gives the class of its PyTorch network to {row.agreement.top1:.2%} of the images where {minimum:.2%} are wanted"
    return _Miss(
        gate="agreement", decided=True, share=(minimum - row.agreement.top1) / max(1 - minimum, 1e-3), told=sentence
    )


def _closest_words(
    row: Row, rows: Sequence[Row], misses: Sequence[_Miss], artifacts: Sequence[ArtifactFile], folder: str
) -> str:
    name = f"{row.target} {row.precision or ''}".strip() if row.step == "artifact" else row.label
    files = [other for other in rows if other.step == "artifact" and other.bytes is not None]
    paths = dict(zip([id(other) for other in files], artifacts, strict=False))
    place = f" ({'/'.join(filter(None, (folder, paths[id(row)].path)))})" if id(row) in paths else ""
    what = "undecided" if row.verdict == "not-checked" else "failed"
    why = "; ".join(miss.told for miss in misses) or row.reason
    first = "Closest to passing is" if row.step == "artifact" else "The run ended at"
    return f"{first} {name}{place}, {what}: {why}."


def _suggest_changes(
    miss: _Miss, row: Row, rows: Sequence[Row], recipe: Mapping[str, Any], limits: Mapping[str, Any]
) -> list[str]:
    if miss.gate == "accuracy":
        tolerance = float(limits.get("max_drop", 0.01))
        return (
            [*_less_loss(row, rows, recipe, tolerance)]
            if miss.decided
            else [*_more_images(row, tolerance), *_less_loss(row, rows, recipe, tolerance)]
        )
    if miss.gate == "latency":
        return _suggest_faster(row, rows, miss.decided)
    return [
        *_keep_in_float(row, rows),
        "Look where the file's values leave PyTorch's: edgewise verify FILE --data D --layers.",
    ]


def images_needed(row: Row, allowed: float) -> int | None:
    """Test images with which a loss like the measured one would be proven to lie within ``allowed``; None if none would: the
    number that the gate on accuracy tells."""
    if row.accuracy is None or -row.accuracy.vs_baseline.delta >= allowed:
        return None
    change = row.accuracy.vs_baseline
    return images_to_decide(change.gained, change.lost, row.accuracy.n, allowed)


def _more_images(row: Row, allowed: float) -> list[str]:
    images = images_needed(row, allowed)
    if images is None or row.accuracy is None or images <= row.accuracy.n:
        return []
    return [
        f"More test images: about {images:,} would decide it if it goes on losing as little (there are {row.accuracy.n:,}); "
        "or a limit that fits the test set."
    ]


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """What one step, with the fine-tuning behind it, lost."""

    step: Row
    before: Row
    lost: float
    """Of top-1, as a fraction; below 0 where it gained."""
    tuned: bool
    """Whether a fine-tune followed."""


def _less_loss(row: Row, rows: Sequence[Row], recipe: Mapping[str, Any], allowed: float) -> list[str]:
    """What the loss came from, the costliest first."""
    changes = []
    for loss in sorted(_losses(row, rows), key=lambda loss: -loss.lost):
        if loss.lost > 0 and loss.step.step in ("artifact", "quantize"):
            changes += _keep_in_float(row, rows, loss.lost)
        elif loss.lost > 0:
            changes += _suggest_milder(loss, allowed)
    return [*changes, *_suggest_longer(recipe, row)]


def _losses(row: Row, rows: Sequence[Row]) -> list[_Loss]:
    """Each judged step on the way to ``row``, and ``row`` itself where it is a file."""
    steps = [step for step in rows if step.target is None and step.accuracy and step.step != "calibrate"]
    way = [step for step in steps if step.precision != "int8" or row.precision == "int8"]
    if row.target is not None:
        way.append(row)
    previous, losses = way[0], []
    for step, behind in zip(way[1:], [*way[2:], None], strict=True):
        if step.step == "finetune":
            continue
        was_tuned = behind is not None and behind.step == "finetune"
        after = behind if behind is not None and was_tuned else step
        if after.accuracy and previous.accuracy:
            loss = previous.accuracy.top1 - after.accuracy.top1
            losses.append(_Loss(step=step, before=previous, lost=loss, tuned=was_tuned))
        previous = after
    return losses


def _suggest_milder(loss: _Loss, allowed: float) -> list[str]:
    """Less of a step that takes something away: how much is left now, and a linear guess at what may go."""
    share = loss.step.macs / loss.before.macs if loss.before.macs else 1.0
    if share >= 1:
        return []
    note = "its fine-tuning included, " if loss.tuned else ""
    text = f"A milder {loss.step.label}: it lost {_points(loss.lost)}, {note}with {share:.0%} of the MACs left"
    if loss.lost > allowed:
        text += f"; {1 - (1 - share) * allowed / loss.lost:.0%} left is a linear guess at what the limit allows"
    if dearest := _dearest_layers(loss.step.facts.get("channel_sensitivity")):
        text += f". Its scan found {dearest} the dearest to cut: keep them"
    advice = [text + "."]
    if not loss.tuned:
        advice.insert(
            0, f"Training after {loss.step.label}: Finetune(training=Training(epochs=20, distill=0.7)) behind it."
        )
    return advice


def _dearest_layers(scan: object, most: int = 3) -> str:
    """The layers whose top-1 falls deepest in a scan of channels."""
    if not isinstance(scan, Mapping):
        return ""
    lowest = {str(name): min(reading["top1"] for reading in curve.values()) for name, curve in scan.items()}
    return ", ".join(sorted(lowest, key=lambda name: lowest[name])[:most])


def _keep_in_float(row: Row, rows: Sequence[Row], lost: float | None = None) -> list[str]:
    """Layers to leave in float: as few of the dearest as cause half of the divergence that was measured, five at most."""
    if row.precision != "int8":
        return []
    costs: Sequence[Mapping[str, Any]] = next(
        (step.facts["sensitivity"] for step in reversed(rows) if step.facts.get("sensitivity")), []
    )
    costliest = sorted(costs, key=lambda cost: -float(cost["kl"]))
    whole = sum(float(cost["kl"]) for cost in costliest)
    if not whole:
        return ["Measure what each layer's quantization costs: Quantize(sensitivity=128)."]
    few: list[Mapping[str, Any]] = []
    while costliest and len(few) < 5 and sum(float(cost["kl"]) for cost in few) < whole / 2:
        few.append(costliest.pop(0))
    share = sum(float(cost["kl"]) for cost in few) / whole
    names = ", ".join(str(cost["layer"]) for cost in few)
    why = f"quantization lost {_points(lost)}; " if lost else ""
    return [
        f"Layers in float: {why}{names} cause {share:.0%} of the divergence that was measured: "
        f"Quantize(max_float_layers={len(few)}, budget=…) leaves them in float."
    ]


def _suggest_longer(recipe: Mapping[str, Any], row: Row) -> list[str]:
    """A longer training of the last step on the way to ``row`` that trains."""
    settings = recipe.get("quantize") if row.precision == "int8" else None
    steps = [*recipe.get("stages", []), *([settings] if settings else [])]
    training_stages = [
        (step["stage"], step["training"]) for step in steps if isinstance(step, Mapping) and step.get("training")
    ]
    if isinstance(settings, Mapping) and not settings.get("training"):
        return ["Training with quantization: Quantize(training=Training(epochs=4, lr=0.0001, distill=0.9))."]
    if not training_stages or row.target is None:
        return []
    name, training = training_stages[-1]
    length = "steps" if training.get("steps") else "epochs"
    count = training.get(length)
    return [f"A longer {name}: {2 * count} {length} instead of {count}."] if isinstance(count, int) else []


def _suggest_faster(row: Row, rows: Sequence[Row], decided: bool) -> list[str]:
    if not decided:
        return ["A quieter machine, or more of its time: nothing else running, the same command again."]
    others = [
        other for other in rows
        if other is not row and other.target == row.target and other.latency and row.latency
        and other.latency.ratio_to_baseline < row.latency.ratio_to_baseline
    ]  # fmt: skip
    changes = [
        f"The {other.precision} file of {row.target} is faster: {numbers.ratio(other.latency.ratio_to_baseline)}."
        for other in others
        if other.latency
    ]
    outside = row.facts.get("coverage", {}).get("undelegated_share", 0.0)
    if outside > 0.01:
        changes.append(f"{outside:.0%} of its MACs lie outside the backend: other layers there, or another target.")
    return [*changes, "A smaller network: Prune(latency=…) removes channels until the measured time fits."]


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"
