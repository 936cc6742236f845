"""What a recipe's stages are tried as: those that are judged together, and a milder setting where they fail."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.stage import Stage, describe_stage, stage_name, traits_of


def group_attempts(stages: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """Stages in the groups that are judged together: one alone, or what is judged after the fine-tuning that follows.

    That is the stage just before it, of whatever kind, and the cuts before that.
    """
    groups: list[tuple[Stage, ...]] = []
    for stage in reversed(stages):
        if groups and _is_judged_with(stage, groups[0]):
            groups[0] = (stage, *groups[0])
        else:
            groups.insert(0, (stage,))
    return groups


def _is_judged_with(stage: Stage, group: tuple[Stage, ...]) -> bool:
    """Whether the fine-tuning at the end of ``group``, which follows ``stage``, is where ``stage`` is judged, too."""
    if not traits_of(group[-1]).recovers or traits_of(stage).recovers:
        return False
    return len(group) == 1 or traits_of(stage).cuts


def milder_attempt(stages: Sequence[Stage]) -> tuple[Stage, ...] | None:
    """The same with the milder setting of each stage that has one; None where none has.

    A stage has one if it has a method ``milder`` that returns it, or None at its end.
    """
    softer = tuple(_soften(stage) for stage in stages)
    return None if softer == tuple(stages) else softer


def _soften(stage: Stage) -> Stage:
    soften = getattr(stage, "milder", None)
    return (soften() if soften is not None else None) or stage


def describe_change(stages: Sequence[Stage], softer: Sequence[Stage]) -> str:
    """The milder settings, in words: ``prune with channels 0.8``."""
    changed = [_describe_setting(*pair) for pair in zip(stages, softer, strict=True) if pair[0] != pair[1]]
    return " and ".join(changed)


def _describe_setting(stage: Stage, softer: Stage) -> str:
    before, after = describe_stage(stage), describe_stage(softer)
    changes = [f"{name} {value:g}" for name, value in after.items() if value != before[name]]
    return f"{stage_name(softer)} with {', '.join(changes)}"
