"""What a search weighs: quantities by name, read with their intervals from the file that a trial wrote for a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgewise import targets
from edgewise.errors import RequestError, name_nearest
from edgewise.measure.paired import fall_verdict
from edgewise.report.recommend import preferred_file
from edgewise.report.rows import Row, Verdict

Interval = tuple[float, float]
Figure = tuple[float, float, float]
"""A measured value and the two ends of its 95 % interval; of what is counted, three times the same."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One kind of figure."""

    name: str
    better: Literal["higher", "lower"]
    unit: str
    read: Callable[[Row], Figure | None]
    """From a file's row; None where it was not measured."""
    timed: bool = False
    """Whether it belongs to the machine that measured it."""


def _read_top1(row: Row) -> Figure | None:
    return None if row.accuracy is None else (row.accuracy.top1, *row.accuracy.ci95)


def _read_drop(row: Row) -> Figure | None:
    if row.accuracy is None:
        return None
    low, high = row.accuracy.vs_baseline.ci95
    return -row.accuracy.vs_baseline.delta, -high, -low


def _read_latency(row: Row) -> Figure | None:
    if row.latency is None:
        return None
    leeway = row.latency.conditions.leeway if row.latency.conditions else 1.0
    low, high = row.latency.ci95
    return row.latency.ratio_to_baseline, low / leeway, high * leeway


def _read_ms(row: Row) -> Figure | None:
    """The median, with the interval of the ratio to the baseline, as wide in milliseconds."""
    ratio = _read_latency(row)
    if ratio is None or row.latency is None:
        return None
    value, low, high = ratio
    return row.latency.p50_ms, row.latency.p50_ms * low / value, row.latency.p50_ms * high / value


def _exactly(value: float | None) -> Figure | None:
    return None if value is None else (float(value), float(value), float(value))


QUANTITIES: Mapping[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity(name="top1", better="higher", unit="share", read=_read_top1),
        Quantity(name="drop", better="lower", unit="share", read=_read_drop),
        Quantity(name="latency", better="lower", unit="× baseline", read=_read_latency, timed=True),
        Quantity(name="ms", better="lower", unit="ms", read=_read_ms, timed=True),
        Quantity(name="bytes", better="lower", unit="bytes", read=lambda row: _exactly(row.bytes)),
        Quantity(name="peak_memory", better="lower", unit="bytes", read=lambda row: _exactly(row.peak_bytes)),
    )
}
"""top1: images told right; drop: top-1 lost from the baseline; latency: time over the baseline's in the same measurement; ms: of
one call; bytes: of the file; peak_memory: by which a fresh process grows that loads it and answers once."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A quantity of the files of one target."""

    quantity: Quantity
    target: str | None = None
    """None: the first of the recipe's targets."""

    def __str__(self) -> str:
        return self.quantity.name + (f"@{self.target}" if self.target else "")

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna says it."""
        return "maximize" if self.quantity.better == "higher" else "minimize"

    def on(self, targets_written: Sequence[str]) -> str:
        """The target meant, among a recipe's."""
        return self.target or targets_written[0]

    def read(self, rows: Sequence[Row], targets_written: Sequence[str]) -> Figure | None:
        """The figure of the file to take for the target; None where there is none, or it was not measured."""
        row = choose_row(rows, self.on(targets_written))
        return None if row is None else self.quantity.read(row)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A measure and the value that it must not pass: at least so much of what is better higher, else at most."""

    measure: Measure
    value: float

    def __str__(self) -> str:
        return f"{self.measure}={self.value:g}"

    def judge(self, rows: Sequence[Row], targets_written: Sequence[str]) -> tuple[Verdict, float, str]:
        """Verdict, excess and reason. The excess is above 0 where the bound is broken, in shares of the bound.

        The interval decides where it lies on one side, as in the gates; where it does not, the verdict is ``not-checked`` and
        the measured value counts.
        """
        figure = self.measure.read(rows, targets_written)
        if figure is None:
            return "not-checked", UNKNOWN, f"{self.measure} was not measured"
        verdict = self._verdict(figure, choose_row(rows, self.measure.on(targets_written)))
        sign = -1.0 if self.measure.quantity.better == "higher" else 1.0
        ends = [sign * (end - self.value) / (abs(self.value) or 1.0) for end in figure]
        excess = {"pass": min(max(ends[1:]), 0.0), "fail": max(ends[0], TINY), "not-checked": ends[0]}[verdict]
        word = "at least" if self.measure.quantity.better == "higher" else "at most"
        value, low, high = figure
        spread = f" (95 % interval {low:.4g} to {high:.4g})" if low != high else ""
        return verdict, excess, f"{self.measure} is {value + 0.0:.4g}{spread}, {word} {self.value:g} wanted"

    def is_met(self, figure: Figure | None) -> bool:
        """Whether a measured value reaches the bound, as a goal does."""
        if figure is None:
            return False
        return figure[0] >= self.value if self.measure.quantity.better == "higher" else figure[0] <= self.value

    def _verdict(self, figure: Figure, row: Row | None) -> Verdict:
        if self.measure.quantity.name == "drop" and row is not None and row.accuracy is not None:
            versus = row.accuracy.vs_baseline
            return fall_verdict(versus.delta, versus.ci95, versus.p_value, self.value)
        _, low, high = figure
        if self.measure.quantity.better == "higher":
            low, high, limit = -high, -low, -self.value
        else:
            limit = self.value
        return "pass" if high <= limit else "fail" if low > limit else "not-checked"


TINY = 1e-9
"""What a bound is broken by at the least, once an interval says that it is."""
UNKNOWN = 1.0
"""The excess of what was not measured: as far beyond a bound as the bound itself."""


def choose_row(rows: Sequence[Row], target: str) -> Row | None:
    """The row of the file to take for a target: of those that passed, else those undecided, else those that failed, the one
    that ``report.recommend`` would."""
    files = [row for row in rows if row.step == "artifact" and row.target == target and row.accuracy is not None]
    verdicts: tuple[Verdict, ...] = ("pass", "not-checked", "fail")
    for verdict in verdicts:
        alike = [row for row in files if row.verdict == verdict]
        if alike:
            return preferred_file(alike)
    return None


def read_measure(text: str) -> Measure:
    """``NAME`` or ``NAME@TARGET``. Raises RequestError, or TargetError for an unknown target."""
    name, at, target = text.partition("@")
    if name not in QUANTITIES:
        raise RequestError(
            f"unknown objective {name!r}.{name_nearest(name, QUANTITIES)} Choices: {', '.join(QUANTITIES)}, each also of one "
            f"target, as latency@xnnpack"
        )
    if at:
        targets.check_name(target)
    return Measure(quantity=QUANTITIES[name], target=target or None)


def read_bound(text: str, option: str) -> Bound:
    """``NAME[@TARGET]=NUMBER``. Raises RequestError."""
    name, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not equals or not 0 <= value < float("inf"):
        raise RequestError(f"{option}: wanted NAME=NUMBER, as drop=0.005 or ms@xnnpack=5, found {text!r}")
    return Bound(measure=read_measure(name), value=value)


def read_objectives(texts: Sequence[str]) -> tuple[Measure, ...]:
    """What is weighed, none twice. Raises RequestError."""
    measures = tuple(read_measure(text) for text in texts)
    twice = next((str(m) for i, m in enumerate(measures) if str(m) in map(str, measures[:i])), None)
    if twice is not None:
        raise RequestError(f"--objective names {twice} twice; give each once")
    return measures
