"""The page's charts, as Plotly figures' JSON.

Labels are HTML-escaped: Plotly reads a subset of HTML in every text. Colours of text and grid are left to the page,
which knows whether it is dark or light.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, cast

from edgewise.measure.values import Difference
from edgewise.report import numbers
from edgewise.report.rows import Row
from edgewise.report.summary import WORDS, baseline, labels

# Okabe & Ito's palette, distinguishable to colour-blind readers and on dark as on light ground.
_FIRST, _FILE = "#8a8f98", "#d55e00"
_STEPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#9a7d0a")
_REPEATS = ("circle", "circle-open", "circle-cross-open", "circle-x-open")
_FILLS = ("", "-open", "-dot", "-open-dot")
_FILES = ("diamond", "square", "triangle-up", "star", "hexagon", "cross", "x", "pentagon")

Figure = dict[str, Any]
Axis = tuple[Callable[[Row], float | None], int]


def tradeoff(rows: Sequence[Row]) -> Figure | None:
    """Top-1 with its 95 % interval against latency and against bytes; None where no row has both to show."""
    from plotly.subplots import make_subplots

    axes: tuple[Axis, Axis] = ((_milliseconds, 1), (_bytes, 2))
    if not any(row.accuracy and value(row) is not None for row in rows for value, _ in axes):
        return None
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for axis in axes:
        figure.add_trace(_path(rows, axis[0]), row=1, col=axis[1])
    for row, marker, name in zip(rows, _markers(rows), labels(rows), strict=True):
        look = {"marker": marker, "name": _short(name), "legendgroup": _plain(name), "hovertext": [_hover(row, name)]}
        _add_points(figure, row, look, axes)
    first = baseline(rows)
    if first and first.accuracy:
        figure.add_hline(y=first.accuracy.top1 * 100, line={"dash": "dot", "width": 1, "color": _FIRST})
    figure.update_xaxes(title_text="median latency of one image, ms", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="size (log scale)", type="log", row=1, col=2)
    figure.update_xaxes(**_byte_ticks(rows), row=1, col=2)
    figure.update_yaxes(title_text="top-1, %", row=1, col=1)
    figure.update_xaxes(title_standoff=8)
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
    figure.update_layout(height=430, margin={"l": 60, "r": 20, "t": 20, "b": 60}, legend=legend)
    return _json(figure)


def waterfall(rows: Sequence[Row]) -> Figure | None:
    """Change of top-1, and time, MACs and parameters left, after every step; None before a step was measured."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    first, steps = baseline(rows), [row for row in rows if row.target is None]
    if first is None or len(steps) < 2:
        return None
    titles = ("top-1, points", "time, %", "MACs, %", "parameters, %")
    figure = make_subplots(rows=1, cols=4, shared_yaxes=True, horizontal_spacing=0.035, subplot_titles=titles)
    places = list(range(len(steps)))
    colours = [marker["color"] for marker in _markers(steps)]
    panels = [[_points_lost(row) for row in steps], [_time_left(row) for row in steps]]
    panels += [[_share(row.macs, first.macs) for row in steps], [_share(row.params, first.params) for row in steps]]
    hovers = list(map(_hover, steps, labels(steps)))
    for column, values in enumerate(panels, start=1):
        changes = [row.accuracy.vs_baseline if row.accuracy else None for row in steps] if column == 1 else []
        bars = {"x": [value or 0 for value in values], "y": places, "marker": {"color": colours}, "hovertext": hovers}
        error = _change_bars(changes) if changes else None
        bar = go.Bar(**bars, orientation="h", hoverinfo="text", showlegend=False, error_x=error)
        ends = [change.ci95[1] * 100 if change else 0.0 for change in changes] or [0.0] * len(values)
        figure.add_trace(bar, row=1, col=column)
        figure.add_trace(_values(values, ends, signed=column == 1), row=1, col=column)
        figure.update_xaxes(range=_room(values, changes), nticks=5, zeroline=column == 1, row=1, col=column)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, tickvals=places)
    figure.update_yaxes(ticktext=list(map(_short, labels(steps))))
    figure.update_annotations(font_size=13)
    figure.update_layout(height=90 + 44 * len(steps), margin={"l": 10, "r": 20, "t": 40, "b": 30}, bargap=0.35)
    return _json(figure)


def _add_points(figure: Any, row: Row, look: dict[str, Any], axes: Sequence[Axis]) -> None:
    import plotly.graph_objects as go

    named = False
    for value, column in axes:
        x = value(row)
        if row.accuracy is None or x is None:
            continue
        top1, (low, high) = row.accuracy.top1 * 100, row.accuracy.ci95
        error = {
            "type": "data",
            "array": [high * 100 - top1],
            "arrayminus": [top1 - low * 100],
            "width": 3,
            "thickness": 1,
        }
        trace = go.Scatter(
            x=[x], y=[top1], error_y=error, mode="markers", showlegend=not named, hoverinfo="text", **look
        )  # fmt: skip
        figure.add_trace(trace, row=1, col=column)
        named = True


def _path(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Any:
    import plotly.graph_objects as go

    points = [(value(row), row.accuracy.top1 * 100) for row in rows if row.target is None and row.accuracy]
    shown = [(x, y) for x, y in points if x is not None]
    return go.Scatter(
        x=[x for x, _ in shown], y=[y for _, y in shown], mode="lines", line={"color": _FIRST, "width": 1},
        opacity=0.5, hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _markers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One colour per kind of step, and for files one symbol per target, filled otherwise for each of its files."""
    kinds = list(dict.fromkeys(row.step for row in rows if row.target is None and row.step != "baseline"))
    targets = list(dict.fromkeys(row.target for row in rows if row.target is not None))
    seen: Counter[tuple[str, str | None]] = Counter()
    markers: list[dict[str, Any]] = []
    for row in rows:
        symbols = _REPEATS if row.target is None else _filled(targets.index(row.target))
        symbol = symbols[seen[row.step, row.target] % len(symbols)]
        seen[row.step, row.target] += 1
        if row.target is not None:
            colour = _FILE
        else:
            colour = _FIRST if row.step == "baseline" else _STEPS[kinds.index(row.step) % len(_STEPS)]
        markers.append({"color": colour, "symbol": symbol, "size": 12})
    return markers


def _filled(target: int) -> tuple[str, ...]:
    """One symbol in the ways it can be drawn; beyond them another symbol, as ever fewer files share one."""
    return tuple(symbol + fill for symbol in (_FILES * 2)[target % len(_FILES) :] for fill in _FILLS)


def _hover(row: Row, name: str) -> str:
    lines = [f"<b>{_plain(name)}</b> ({WORDS[row.verdict]}{', ' + row.verification if row.verification else ''})"]
    if a := row.accuracy:
        low, high = map(numbers.percent, a.ci95)
        change = f"{numbers.points(a.vs_baseline.delta)} points, p = {a.vs_baseline.p_value:.3g}"
        lines += [f"top-1 {numbers.percent(a.top1)} % [{low}, {high}], n = {a.n}", f"against the baseline: {change}"]
    if t := row.latency:
        low, high = map(numbers.ratio, t.ci95)
        lines += [
            f"{numbers.significant(t.p50_ms)} ms (p90 {numbers.significant(t.p90_ms)}) on {_plain(t.on)}",
            f"{numbers.ratio(t.ratio_to_baseline)} the baseline's time [{low}, {high}]",
        ]
    lines.append(f"{numbers.count(row.params)} parameters, {numbers.count(row.macs)} MACs, {numbers.size(row.bytes)}")
    return "<br>".join(lines)


def _plain(text: str) -> str:
    # Plotly knows &lt; &gt; and &amp; but shows &quot; as it stands.
    return escape(text, quote=False)


def _short(name: str) -> str:
    """What fits beside a bar: the ends of a long name, the one that tells it from its like included."""
    return _plain(name if len(name) <= 28 else f"{name[:17]}…{name[-10:]}")


def _byte_ticks(rows: Sequence[Row]) -> dict[str, Any]:
    """Range and ticks of the logarithmic axis: 1, 2 and 5 of every decade, so that a narrow range has some too."""
    sizes = [row.bytes for row in rows if row.bytes and row.accuracy] or [1]
    low, high = min(sizes) / 1.3, max(sizes) * 1.3
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [step * 10**power for power in range(13) for step in steps if low <= step * 10**power <= high]
    texts = [numbers.size(tick).replace(".00 ", " ").replace(".0 ", " ") for tick in ticks]
    return {"range": [math.log10(low), math.log10(high)], "tickvals": ticks, "ticktext": texts}


def _milliseconds(row: Row) -> float | None:
    return row.latency.p50_ms if row.latency else None


def _bytes(row: Row) -> float | None:
    return row.bytes or None


def _points_lost(row: Row) -> float | None:
    return row.accuracy.vs_baseline.delta * 100 if row.accuracy else None


def _time_left(row: Row) -> float | None:
    return row.latency.ratio_to_baseline * 100 if row.latency else None


def _share(part: int, whole: int) -> float | None:
    return part / whole * 100 if whole else None


def _values(values: Sequence[float | None], ends: Sequence[float], signed: bool) -> Any:
    """The bars' numbers, to the right of bar and interval, where neither crosses them."""
    import plotly.graph_objects as go

    texts = ["not measured" if v is None else numbers.points(v / 100) if signed else f"{v:.0f}" for v in values]
    at = [max(value or 0.0, end, 0.0) for value, end in zip(values, ends, strict=True)]
    padded = [f" {text}" for text in texts]
    return go.Scatter(
        x=at,
        y=list(range(len(values))),
        cliponaxis=False,
        mode="text",
        text=padded,
        textposition="middle right",
        hoverinfo="skip",
        showlegend=False,
    )


def _change_bars(changes: Sequence[Difference | None]) -> dict[str, Any]:
    above = [(change.ci95[1] - change.delta) * 100 if change else 0.0 for change in changes]
    below = [(change.delta - change.ci95[0]) * 100 if change else 0.0 for change in changes]
    return {"type": "data", "thickness": 1, "width": 3, "color": _FIRST, "array": above, "arrayminus": below}


def _room(values: Sequence[float | None], changes: Sequence[Difference | None]) -> list[float]:
    """The axis' range: every bar and interval, zero, and space for the numbers written beside them."""
    ends = [value for value in values if value is not None]
    ends += [end * 100 for change in changes if change for end in change.ci95]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    span = high - low or 1.0
    return [low - span * 0.05 if low < 0 else 0.0, high + span * 0.4]


def _json(figure: Any) -> Figure:
    figure.update_layout(template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return cast(Figure, json.loads(figure.to_json()))
