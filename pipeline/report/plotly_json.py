"""A report's extra charts, kept as Plotly's JSON, as figures of ours.

Of that format the part that parts of a report use: traces of type ``scatter`` and ``bar`` on one pair of axes, with
``hovertext``, colours and titles. Whatever else is there is said, not drawn.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.report import numbers
from edgewise.report.figure import Bars, BarTable, Figure, Key, Line, Mark, Panel
from edgewise.report.scale import linear_scale

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#9a7d0a", "#d55e00", "#8a8f98")
_COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}|[a-z]+")


def read_figure(figure: Mapping[str, Any], title: str) -> Figure | BarTable | str:
    """What to draw, or in words why nothing can be drawn; ``title``: what the figure shows."""
    traces = figure.get("data") or []
    if not isinstance(traces, Sequence) or not all(isinstance(trace, Mapping) for trace in traces) or not traces:
        return "this chart holds no traces"
    kinds = {str(trace.get("type", "scatter")) for trace in traces}
    layout = figure.get("layout") or {}
    try:
        if kinds == {"bar"}:
            return _read_bars(traces, layout)
        if kinds == {"scatter"}:
            return _read_curves(traces, layout, title)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        return f"this chart cannot be read: {error}"
    return f"charts of type {', '.join(sorted(kinds))} are not drawn; bar and scatter are"


def _read_bars(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> BarTable:
    """One column of bars a trace; upright bars are laid on their side, where long names have room."""
    flat = traces[0].get("orientation") == "h"
    names_at, values_at = ("y", "x") if flat else ("x", "y")
    names = [_strip_html(name) for name in traces[0][names_at]]
    order = list(reversed(range(len(names)))) if flat and not _is_reversed(layout) else list(range(len(names)))
    title = _title(layout, values_at)
    columns = [
        _read_column(
            trace,
            [trace[values_at][i] for i in order],
            f"{_strip_html(trace['name'])}: {title}" if trace.get("name") else title,
        )
        for trace in traces
    ]
    colour = traces[0].get("marker", {}).get("color")
    colours = colour if isinstance(colour, list) else [None] * len(names)
    hovers = traces[0].get("hovertext") or [""] * len(names)
    return BarTable(
        head=_title(layout, names_at) or "layer",
        names=tuple(names[i] for i in order),
        colours=tuple(_colour(colours[i], 0) for i in order),
        columns=tuple(columns),
        one_scale=len({trace.get(f"{values_at}axis") for trace in traces}) == 1,
        told=tuple(_strip_html(hovers[i]) for i in order),
    )


def _read_column(trace: Mapping[str, Any], values: Sequence[Any], title: str) -> Bars:
    numbers = [None if value is None else float(value) for value in values]
    texts = ["–" if value is None else _amount(value) for value in numbers]
    color = trace.get("marker", {}).get("color")
    colour = "" if isinstance(color, list) else _colour(color, 0)
    return Bars(title=title, values=tuple(numbers), texts=tuple(texts), colour=colour)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else numbers.significant(value)


def _read_curves(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], title: str) -> Figure:
    points = [[(float(x), float(y)) for x, y in zip(t["x"], t["y"], strict=True)] for t in traces]
    lines, marks, keys = [], [], []
    for index, (trace, at) in enumerate(zip(traces, points, strict=True)):
        line, mode = trace.get("line", {}), trace.get("mode", "lines")
        colour = _colour(line.get("color") or trace.get("marker", {}).get("color"), index)
        name = _strip_html(trace.get("name", ""))
        if "lines" in mode:
            is_dashed = line.get("dash", "solid") != "solid"
            lines.append(Line(points=tuple(at), colour=colour, dashed=is_dashed))
        hovers = trace.get("hovertext") or [f"{name}: {x:g}, {y:g}" for x, y in at]
        marks += [
            Mark(x=x, y=y, told=_strip_html(text), colour=colour) for (x, y), text in zip(at, hovers, strict=True)
        ]
        keys += [Key(text=name, colour=colour)] if name else []
    panel = Panel(
        label=title,
        x=linear_scale([x for at in points for x, _ in at]),
        y=linear_scale([y for at in points for _, y in at]),
        x_title=_title(layout, "x"),
        y_title=_title(layout, "y"),
        lines=tuple(lines),
        marks=tuple(marks),
        height=340,
    )
    return Figure(panels=(panel,), keys=tuple(keys))


def _title(layout: Mapping[str, Any], axis: str) -> str:
    title = layout.get(f"{axis}axis", {}).get("title", "")
    return _strip_html(title.get("text", "") if isinstance(title, Mapping) else title)


def _is_reversed(layout: Mapping[str, Any]) -> bool:
    return bool(layout.get("yaxis", {}).get("autorange") == "reversed")


def _strip_html(text: object) -> str:
    """Plotly's texts hold a little HTML; ours none."""
    return html.unescape(re.sub(r"</?[a-z]+>", "", str(text).replace("<br>", "\n")))


def _colour(value: object, index: int) -> str:
    return value if isinstance(value, str) and _COLOUR.fullmatch(value) else _COLOURS[index % len(_COLOURS)]
