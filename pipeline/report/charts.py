"""The page's charts of the whole run: accuracy against time and size, and what every step changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.measure.values import Difference
from edgewise.report import numbers
from edgewise.report.figure import Bars, BarTable, Figure, Fill, Key, Mark, Panel
from edgewise.report.figure import Line as Joined
from edgewise.report.rows import Row, Verdict
from edgewise.report.scale import Scale, linear_scale, logarithmic_scale
from edgewise.report.summary import WORDS, baseline_row, row_labels, target_groups
from edgewise.report.svg import SHAPES

# Okabe & Ito's palette, distinguishable to colour-blind readers and on dark as on light ground.
FIRST = "#8a8f98"
_STEPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#9a7d0a")
_FILES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
_FILLS: dict[Verdict, Fill] = {"pass": "solid", "not-checked": "hollow", "fail": "crossed"}

Value = Callable[[Row], float | None]


def draw_tradeoff(rows: Sequence[Row]) -> Figure | None:
    """Top-1 with its 95 % interval against time relative to the baseline and against bytes; None where no row has both.

    Every time is divided by the baseline's on the same runtime, measured in the same interleaved run, so that files of
    different runtimes stand on one axis and each runtime's baseline at 1.
    """
    with_time = _drawable_rows(rows, _ratio)
    with_size = _drawable_rows(rows, _bytes)
    if not with_time and not with_size:
        return None
    y = _accuracy_scale([row for row, _ in (*with_time, *with_size)])
    looks = dict(zip(map(id, rows), _looks(rows), strict=True))
    first = baseline_row(rows)
    level = (first.accuracy.top1 * 100,) if first and first.accuracy else ()
    panels = []
    if with_time:
        ends = [end for row, _ in with_time if row.latency for end in row.latency.ci95]
        x = linear_scale([*ends, 1.0], zero=True)
        title = "time of one image, a share of the baseline's on the same runtime"
        panels.append(_draw_panel(with_time, looks, x, y, title, _ratio, level, upright=(1.0,)))
    if with_size:
        x = logarithmic_scale([value for _, value in with_size], _round_size)
        panels.append(_draw_panel(with_size, looks, x, y, "bytes on disk (log scale)", _bytes, level))
    drawn_rows = {id(row) for row, _ in (*with_time, *with_size)}
    return Figure(panels=tuple(panels), keys=tuple(looks[id(row)] for row in rows if id(row) in drawn_rows))


def _drawable_rows(rows: Sequence[Row], value: Value) -> list[tuple[Row, float]]:
    points = [(row, value(row)) for row in rows if row.accuracy]
    return [(row, at) for row, at in points if at is not None]


def _draw_panel(
    shown: Sequence[tuple[Row, float]],
    looks: dict[int, Key],
    x: Scale,
    y: Scale,
    title: str,
    value: Value,
    level: tuple[float, ...],
    upright: tuple[float, ...] = (),
) -> Panel:
    marks = [_make_mark(row, at, looks[id(row)], value is _ratio) for row, at in shown]
    steps = tuple((at, row.accuracy.top1 * 100) for row, at in shown if row.target is None and row.accuracy)
    return Panel(
        label=f"Top-1 against {title}; the table of steps and files holds the same numbers",
        x=x,
        y=y,
        x_title=title,
        y_title="top-1, %",
        marks=tuple(marks),
        lines=(Joined(points=steps, colour=FIRST, thin=True),) if len(steps) > 1 else (),
        across=level,
        upright=upright,
    )


def _make_mark(row: Row, at: float, look: Key, timed: bool) -> Mark:
    assert row.accuracy is not None
    low, high = row.accuracy.ci95
    return Mark(
        x=at,
        y=row.accuracy.top1 * 100,
        told=describe_row(row, look.text),
        colour=look.colour,
        shape=look.shape,
        fill=look.fill,
        name=look.name,
        x_range=row.latency.ci95 if timed and row.latency else None,
        y_range=(low * 100, high * 100),
        group=look.group,
    )


def _accuracy_scale(rows: Sequence[Row]) -> Scale:
    return linear_scale([end * 100 for row in rows if row.accuracy for end in row.accuracy.ci95], margin=0.03)


def _looks(rows: Sequence[Row]) -> list[Key]:
    """Colour, shape and number of each row: a colour a kind of step; for files a shape a target, a colour a precision."""
    kinds = list(dict.fromkeys(row.step for row in rows if row.target is None and row.step != "baseline"))
    names = list(dict.fromkeys(row.target for row in rows if row.target is not None))
    precisions = list(dict.fromkeys(row.precision for row in rows if row.target is not None))
    looks = []
    for number, (row, name, group) in enumerate(zip(rows, row_labels(rows), target_groups(rows), strict=True), 1):
        if row.target is not None:
            colour = _FILES[precisions.index(row.precision) % len(_FILES)]
            shape = SHAPES[1 + names.index(row.target) % (len(SHAPES) - 1)]
        else:
            colour = FIRST if row.step == "baseline" else _STEPS[kinds.index(row.step) % len(_STEPS)]
            shape = "circle"
        key = Key(text=name, colour=colour, shape=shape, fill=_FILLS[row.verdict], name=str(number), group=group)
        looks.append(key)
    return looks


def draw_waterfall(rows: Sequence[Row]) -> BarTable | None:
    """Change of top-1, and time, MACs and parameters left, after every step; None before a step was measured."""
    first, steps = baseline_row(rows), [row for row in rows if row.target is None]
    if first is None or len(steps) < 2:
        return None
    changes = [row.accuracy.vs_baseline if row.accuracy else None for row in steps]
    shares = {
        "time, %": ([_share(_ratio(row)) for row in steps], [_time_interval(row) for row in steps]),
        "MACs, %": ([_share(row.macs / first.macs if first.macs else None) for row in steps], []),
        "params, %": ([_share(row.params / first.params if first.params else None) for row in steps], []),
    }
    columns = [_change_column(changes)]
    columns += [
        Bars(title=title, values=tuple(values), texts=tuple(map(_whole_percent, values)), ranges=tuple(ranges))
        for title, (values, ranges) in shares.items()
    ]
    looks = {id(row): look for row, look in zip(rows, _looks(rows), strict=True)}
    return BarTable(
        head="after step",
        names=tuple(map(shorten_name, row_labels(steps))),
        colours=tuple(looks[id(row)].colour for row in steps),
        columns=tuple(columns),
        told=tuple(map(describe_row, steps, row_labels(steps))),
    )


def _change_column(changes: Sequence[Difference | None]) -> Bars:
    return Bars(
        title="top-1, points",
        values=tuple(change.delta * 100 if change else None for change in changes),
        texts=tuple(numbers.points(change.delta) if change else "not measured" for change in changes),
        ranges=tuple((change.ci95[0] * 100, change.ci95[1] * 100) if change else None for change in changes),
    )


def describe_row(row: Row, name: str) -> str:
    """All that was measured on a row, in a few lines of plain text."""
    lines = [f"{name} ({WORDS[row.verdict]}{', ' + row.verification if row.verification else ''})"]
    if a := row.accuracy:
        low, high = map(numbers.percent, a.ci95)
        change = f"{numbers.points(a.vs_baseline.delta)} points, p = {a.vs_baseline.p_value:.3g}"
        lines += [f"top-1 {numbers.percent(a.top1)} % [{low}, {high}], n = {a.n}", f"against the baseline: {change}"]
    if t := row.latency:
        low, high = map(numbers.ratio, t.ci95)
        lines += [
            f"{numbers.significant(t.p50_ms)} ms (p90 {numbers.significant(t.p90_ms)}) on {t.on}",
            f"{numbers.ratio(t.ratio_to_baseline)} the baseline's time [{low}, {high}]",
        ]
    lines.append(f"{numbers.count(row.params)} parameters, {numbers.count(row.macs)} MACs, {numbers.size(row.bytes)}")
    return "\n".join(lines)


def shorten_name(name: str) -> str:
    """What fits beside a bar: the ends of a long name, the one that tells it from its like included."""
    return name if len(name) <= 28 else f"{name[:17]}…{name[-10:]}"


def _round_size(value: float) -> str:
    return numbers.size(round(value)).replace(".00 ", " ").replace(".0 ", " ")


def _ratio(row: Row) -> float | None:
    return row.latency.ratio_to_baseline if row.latency else None


def _bytes(row: Row) -> float | None:
    return row.bytes or None


def _time_interval(row: Row) -> tuple[float, float] | None:
    return (row.latency.ci95[0] * 100, row.latency.ci95[1] * 100) if row.latency else None


def _share(value: float | None) -> float | None:
    return None if value is None else value * 100


def _whole_percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}"
