"""Which file to take for each target: the fastest of those that passed, whatever its precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.report import numbers
from edgewise.report.rows import ArtifactFile, Row
from edgewise.store.json_values import encode_fields


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One target's file, or why there is none."""

    target: str
    precision: str | None
    """Of the recommended file; None where no file passed."""
    path: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON types."""
        return encode_fields(self)

    def __str__(self) -> str:
        if self.precision is None:
            return f"{self.target}: no file, {self.reason}"
        return f"{self.target}: {self.precision}, {self.reason}"


def recommend_files(rows: Sequence[Row], artifacts: Sequence[ArtifactFile]) -> list[Recommendation]:
    """One for each target that a file was asked for; ``artifacts`` in the order of their rows."""
    files = [row for row in rows if row.step == "artifact" and row.target is not None]
    paths = dict(zip([id(row) for row in files if row.bytes is not None], artifacts, strict=False))
    names = dict.fromkeys(row.target for row in files if row.target is not None)
    return [_of_target(name, [row for row in files if row.target == name], paths) for name in names]


def _of_target(target: str, files: Sequence[Row], paths: dict[int, ArtifactFile]) -> Recommendation:
    passing = [row for row in files if row.verdict == "pass"]
    if not passing:
        return Recommendation(target=target, precision=None, path=None, reason=f"{_no_file_reason(files)} passed")
    best, reason = _choose_file(passing)
    path = paths[id(best)].path if id(best) in paths else None
    return Recommendation(target=target, precision=best.precision or "", path=path, reason=reason)


def preferred_file(rows: Sequence[Row]) -> Row:
    """Of files of one target that are judged alike, the one to take."""
    return _choose_file(rows)[0]


def _choose_file(rows: Sequence[Row]) -> tuple[Row, str]:
    with_time = [row for row in rows if row.latency is not None]
    return _fastest_row(with_time) if with_time else _smallest_row(rows)


def _no_file_reason(files: Sequence[Row]) -> str:
    return "the only one has not" if len(files) == 1 else f"none of {len(files)} has"


def _fastest_row(timed: Sequence[Row]) -> tuple[Row, str]:
    """The lowest ratio; of files whose intervals overlap the fastest's, which the clock cannot tell apart, the smallest."""
    by_ratio = sorted(timed, key=_ratio)
    first = by_ratio[0]
    level = [row for row in by_ratio if _interval(row)[0] <= _interval(first)[1]]
    best = min(level, key=lambda row: row.bytes or 0)
    others = [row for row in by_ratio if row is not best]
    if not others:
        return best, f"the only file that passed, {_time_words(best)}"
    if len(level) > 1:
        names = ", ".join(f"{row.precision} {numbers.size(row.bytes)}" for row in level if row is not best)
        slower = [row for row in others if row not in level]
        tail = f"; slower: {_list_names(slower)}" if slower else ""
        return (
            best,
            f"as fast as the fastest within the noise and the smallest of those ({names}), {_time_words(best)}{tail}",
        )
    return best, f"the fastest that passed, {_time_words(best)}; slower: {_list_names(others)}"


def _list_names(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.precision} {_time_words(row)}" for row in rows)


def _time_words(row: Row) -> str:
    assert row.latency is not None
    return f"{numbers.significant(row.latency.p50_ms)} ms ({numbers.ratio(row.latency.ratio_to_baseline)} the baseline)"


def _ratio(row: Row) -> float:
    assert row.latency is not None
    return row.latency.ratio_to_baseline


def _interval(row: Row) -> tuple[float, float]:
    assert row.latency is not None
    return row.latency.ci95


def _smallest_row(passed: Sequence[Row]) -> tuple[Row, str]:
    best = min(passed, key=lambda row: row.bytes or 0)
    size = numbers.size(best.bytes)
    if len(passed) == 1:
        return best, f"the only file that passed, {size}; this machine cannot time it"
    return best, f"the smallest that passed, {size}; this machine cannot time these files"
