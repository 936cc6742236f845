"""Two runs or two written files held against each other: what a change costs on every target, for people and for CI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.files import parts
from edgewise.files.isolated import call_remotely, open_isolated
from edgewise.files.open import open_runtime, refuse_without_runtime
from edgewise.images import resized
from edgewise.images.preprocess import blank_image
from edgewise.measure import statistics
from edgewise.measure.answers import compute_logits
from edgewise.measure.compared import (
    WORSE,
    Compared,
    compare_outcomes,
    compare_shares,
    compare_sizes,
    compare_times,
)
from edgewise.measure.conditions import Conditions
from edgewise.measure.latency import measure
from edgewise.measure.soundness import correct_images
from edgewise.report.document import FILE, Report, refuse_damaged
from edgewise.report.outcomes import Outcomes, key_of_row, read_outcomes
from edgewise.report.rows import Row
from edgewise.verify import card, manifest
from edgewise.verify.card import Card
from edgewise.verify.held import hold_copy


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What B may cost more than A, and how long is measured."""

    max_drop: float = 0.01
    """Top-1, as a fraction."""
    max_growth: float = 0.01
    """Of a file's bytes, as a share."""
    seconds: float = 5.0
    """Of timing for each pair of files; 0: none is timed."""
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_growth", "seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RequestError(f"{name} must be 0 or more, found {getattr(self, name):g}")
        if self.threads < 1:
            raise RequestError(f"wanted at least 1 thread, found {self.threads}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of both sides."""

    name: str
    """Its target and precision."""
    compared: tuple[Compared, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B against A."""

    a: Path
    b: Path
    entries: tuple[Entry, ...]

    @property
    def worse(self) -> bool:
        """Whether B is certainly worse in anything."""
        return any(one.word in WORSE for entry in self.entries for one in entry.compared)

    def rows(self) -> list[list[str]]:
        """File, quantity, word and reason, one row for each quantity."""
        return [[e.name, one.quantity, one.word, one.reason] for e in self.entries for one in e.compared]

    def to_json(self) -> dict[str, Any]:
        """The document that ``compare --json`` prints."""
        return {
            "schema": 1,
            "a": str(self.a),
            "b": str(self.b),
            "verdict": "worse" if self.worse else "not worse",
            "files": [{"file": e.name, "compared": [one.to_json() for one in e.compared]} for e in self.entries],
        }


def compare_paths(a: Path, b: Path, allowed: Allowed, data: str | None = None) -> Comparison:
    """B against A: two folders of runs, two ``report.json``, or two written files with their cards.

    ``data``: a data set that both files are run on; runs have kept what theirs answered. Raises RequestError for anything
    else, and for a file and a run together.
    """
    for path in (a, b):
        if not path.exists():
            raise RequestError(f"there is no file or folder {path}")
    of_runs = [_report_folder(path) for path in (a, b)]
    first, second = of_runs
    if first is not None and second is not None:
        if data is not None:
            raise RequestError("--data is for two files; two runs have kept what their files answered")
        with refuse_damaged(Path(f"{first} or {second}")):
            return _compare_runs(first, second, allowed)
    if first is not None or second is not None:
        raise RequestError(f"wanted two runs or two files, found a run and {b if second is None else a}")
    return _compare_files(a, b, allowed, data)


def _report_folder(path: Path) -> Path | None:
    if path.name == FILE:
        return path.parent
    return path if path.is_dir() and (path / FILE).is_file() else None


def _compare_runs(a: Path, b: Path, allowed: Allowed) -> Comparison:
    before, after = _Run.read(a), _Run.read(b)
    names = dict.fromkeys([*before.rows, *after.rows])
    if not names:
        raise RequestError(f"neither {a} nor {b} holds a written file to compare; both runs ended before")
    entries = [Entry(name=name, compared=tuple(_compare_rows(name, before, after, allowed))) for name in names]
    return Comparison(a=a, b=b, entries=tuple(entries))


@dataclass(frozen=True, kw_only=True)
class _Run:
    folder: Path
    report: Report
    rows: Mapping[str, Row]
    """Written files by target and precision."""
    outcomes: Outcomes | None

    @classmethod
    def read(cls, folder: Path) -> _Run:
        report = Report.read(folder)
        rows = {key_of_row(row): row for row in report.rows if row.step == "artifact" and row.bytes is not None}
        return cls(folder=folder, report=report, rows=rows, outcomes=read_outcomes(folder))

    def path(self, row: Row) -> Path | None:
        """The row's file, where it still lies in the run's folder."""
        files = [one for one in self.report.rows if one.step == "artifact" and one.bytes is not None]
        entry = self.report.artifacts[next(i for i, one in enumerate(files) if one is row)]
        place = self.folder / entry.path
        return place if place.exists() and card.path_of(place).is_file() else None


def _compare_rows(name: str, a: _Run, b: _Run, allowed: Allowed) -> list[Compared]:
    ours, theirs = b.rows.get(name), a.rows.get(name)
    if ours is None or theirs is None:
        word, side = ("new", a.folder) if theirs is None else ("missing", b.folder)
        return [Compared(quantity="file", word="new" if word == "new" else "missing", reason=f"not in {side}")]
    comparisons = [_compare_accuracy(name, a, b, allowed)]
    assert ours.bytes is not None and theirs.bytes is not None
    return [
        *filter(None, comparisons),
        _compare_rows_times(ours, theirs, a, b, allowed),
        compare_sizes(ours.bytes, theirs.bytes, allowed.max_growth),
    ]


def _compare_accuracy(name: str, a: _Run, b: _Run, allowed: Allowed) -> Compared | None:
    """Paired where both runs kept their outcomes on the same images."""
    outcomes = a.outcomes, b.outcomes
    if (
        outcomes[0]
        and outcomes[1]
        and outcomes[0].data == outcomes[1].data
        and name in outcomes[0].given
        and name in outcomes[1].given
    ):
        return compare_outcomes(outcomes[1].right(name), outcomes[0].right(name), allowed.max_drop)
    ours, theirs = b.rows[name].accuracy, a.rows[name].accuracy
    if ours is None or theirs is None:
        return None
    return compare_shares((ours.top1, ours.n), (theirs.top1, theirs.n), allowed.max_drop)


def _compare_rows_times(ours: Row, theirs: Row, a: _Run, b: _Run, allowed: Allowed) -> Compared:
    """The files timed in turn, where both are here and can run; else each run's ratio to its own baseline."""
    places = a.path(theirs), b.path(ours)
    if allowed.seconds and places[0] and places[1] and targets.get(str(ours.target)).load is not None:
        return _time_in_turn(places[0], places[1], allowed)
    if ours.latency is None or theirs.latency is None:
        return Compared(quantity="time", word="cannot tell", reason="no runtime here, and a run that measured none")
    machines = [run.report.environment.get("cpu") for run in (a, b)]
    if machines[0] != machines[1]:
        reason = f"measured on different machines, {machines[0]} and {machines[1]}"
        return Compared(quantity="time", word="cannot tell", reason=reason)
    one, other = ours.latency, theirs.latency
    ratio = one.ratio_to_baseline / other.ratio_to_baseline
    comparison = compare_times(ratio, (one.ci95[0] / other.ci95[1], one.ci95[1] / other.ci95[0]), one.conditions)
    return Compared(
        quantity="time", word=comparison.word, reason=f"{comparison.reason}, by each run's ratio to its own baseline"
    )


def _compare_files(a: Path, b: Path, allowed: Allowed, data: str | None) -> Comparison:
    for path in (a, b):
        own_card = _trusted(path)
        if data is not None or allowed.seconds:
            refuse_without_runtime(targets.get(own_card.target), path)
    with hold_copy(a) as first, hold_copy(b) as second:
        before, after = card.read(first), card.read(second)
        comparisons = [
            _compare_cards(before, after, allowed)
            if data is None
            else compare_outcomes(_outcomes(second, after, data), _outcomes(first, before, data), allowed.max_drop),
            _time_copies(first, second, allowed) if allowed.seconds else None,
            compare_sizes(parts.size(second), parts.size(first), allowed.max_growth),
        ]
    name = " against ".join(dict.fromkeys(f"{c.target} {c.row.precision or 'file'}" for c in (after, before)))
    return Comparison(a=a, b=b, entries=(Entry(name=name, compared=tuple(filter(None, comparisons))),))


def _trusted(path: Path) -> Card:
    """The card of a file that is what its run wrote; nothing of it is parsed before that is known."""
    if not parts.is_artifact(path):
        raise RequestError(f"{path} is no written file, and holds no run's {FILE}")
    manifest.require_whole(path)
    return card.read(path)


def _compare_cards(a: Card, b: Card, allowed: Allowed) -> Compared | None:
    if a.row.accuracy is None or b.row.accuracy is None or a.data_digest != b.data_digest:
        return None
    ours, theirs = b.row.accuracy, a.row.accuracy
    return compare_shares((ours.top1, ours.n), (theirs.top1, theirs.n), allowed.max_drop)


def _outcomes(path: Path, own_card: Card, name: str) -> Any:
    data = resized.resize_data(card.load_images(own_card, name), own_card.input_shape[1:])
    if data.shape != own_card.input_shape:
        raise RequestError(f"{path.name} takes images {own_card.input_shape}, the data has {data.shape}")
    with open_isolated(own_card.target, path) as runner:
        return correct_images(
            compute_logits(runner, data.test, own_card, fed=own_card.fed).numpy(), data.test.labels.numpy()
        )


def _time_in_turn(a: Path, b: Path, allowed: Allowed) -> Compared:
    """Both files called in turn in one measurement."""
    for path in (a, b):
        refuse_without_runtime(targets.get(_trusted(path).target), path)
    with hold_copy(a) as first, hold_copy(b) as second:
        return _time_copies(first, second, allowed)


def _time_copies(a: Path, b: Path, allowed: Allowed) -> Compared:
    """In a process of their own."""
    with call_remotely(_Pair, a, b, allowed.threads, what=f"timing {b.name} against {a.name}") as timed:
        ratio, interval, conditions = timed(allowed.seconds)
    return compare_times(ratio, interval, conditions)


class _Pair:
    """In the process that times: two files, opened."""

    def __init__(self, a: Path, b: Path, threads: int) -> None:
        self.calls, self.threads = {"b": _call_of(b, threads), "a": _call_of(a, threads)}, threads

    def __call__(self, seconds: float) -> tuple[float, tuple[float, float], Conditions]:
        measurement = measure(self.calls, seconds=seconds, threads=self.threads)
        ratio, interval = statistics.ratio_interval(measurement.samples["b"].blocks, measurement.samples["a"].blocks)
        return ratio, interval, measurement.conditions("b")


def _call_of(path: Path, threads: int) -> Callable[[], object]:
    own_card = card.read(path)
    runner = open_runtime(targets.get(own_card.target), path, threads)
    return partial(runner, blank_image(own_card.input_shape, own_card.fed))


def markdown_of(comparison: Comparison) -> Sequence[str]:
    """A comment for a pull request: the verdict and a table."""
    from edgewise.report import markdown

    verdict = "**worse**" if comparison.worse else "not worse"
    head = ["file", "", "", "why"]
    rows = [
        [name, quantity, f"**{word}**" if word in WORSE else word, why]
        for name, quantity, word, why in comparison.rows()
    ]
    return [f"Compared with `{comparison.a}`: {verdict}.", "", *markdown.markdown_table(head, rows)]
