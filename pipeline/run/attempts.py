"""What a recipe's stages are tried as: those that are judged together, and a milder setting where they fail."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.stage import Stage, describe_stage, stage_name, traits_of


def group_attempts(stages: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """Stages in the groups that are judged together: one alone, or with the fine-tuning that follows at once."""
    groups: list[tuple[Stage, ...]] = []
    for stage in stages:
        if groups and traits_of(stage).recovers and not traits_of(groups[-1][-1]).recovers:
            groups[-1] = (*groups[-1], stage)
        else:
            groups.append((stage,))
    return groups


def milder_attempt(stages: Sequence[Stage]) -> tuple[Stage, ...] | None:
    """The same with the first stage's milder setting; None where it has none.

    A stage has one if it has a method ``milder_attempt`` that returns it, or None at its end.
    """
    soften = getattr(stages[0], "milder", None)
    softer = None if soften is None else soften()
    return None if softer is None else (softer, *stages[1:])


def describe_change(stage: Stage, softer: Stage) -> str:
    """The milder setting, in words: ``prune with ratio 0.2``."""
    before, after = describe_stage(stage), describe_stage(softer)
    changes = [f"{name} {value:g}" for name, value in after.items() if value != before[name]]
    return f"{stage_name(softer)} with {', '.join(changes)}"
