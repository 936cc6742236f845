"""The picture of a substitution plan: layer by layer what was accepted, what was rejected, and why.

A step tells its plan among its row's facts, under ``plan``: ``layers`` in order of execution, each with what it cost and
saved, whether it was ``accepted``, and the ``reason``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from edgewise.report import numbers
from edgewise.report.charts import Figure, _json
from edgewise.report.rows import Row

ACCEPTED, REJECTED = "#009e73", "#d55e00"
"""Okabe and Ito's green and vermilion, distinguishable to colour-blind readers; the signs say the same."""
_NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One step's plan as the page shows it."""

    title: str
    summary: str
    figure: Figure
    layers: Sequence[Mapping[str, str]]
    """For each layer the cells of its table row."""


def pictures(named: Sequence[tuple[Row, str]]) -> list[Picture]:
    """A picture for every row that told a plan; ``named``: each row with what the page calls it."""
    return [_picture(name, row.facts["plan"]) for row, name in named if _is_plan(row.facts.get("plan"))]


def _is_plan(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value.get("layers"))


def _picture(name: str, plan: Mapping[str, Any]) -> Picture:
    return Picture(
        title=f"The plan of {name}, layer by layer",
        summary=_summary(plan),
        figure=_figure(plan),
        layers=[_cells(layer) for layer in plan["layers"]],
    )


def _summary(plan: Mapping[str, Any]) -> str:
    layers, dense, new = plan["layers"], plan["dense_macs"], plan["new_macs"]
    text = f"{plan['accepted']} of {len(layers)} layers replaced"
    if dense and new:
        text += f"; in them {numbers.count(dense)} multiply-accumulates became {numbers.count(new)}, {dense / new:.2f} times fewer"
    found = plan["calibration"]
    states = [(key, label) for key, label in _STATES if key in found]
    text += f". Top-1 on {found['n']:,} calibration images: "
    text += ", ".join(f"{numbers.percent(found[key])} % {label}" for key, label in states)
    if plan["max_drop"] is not None:
        text += f" (budget: {100 * plan['max_drop']:g} points at the fit)"
    return text + "."


_STATES = (
    ("before", "before"),
    ("substituted", "with the new forms"),
    ("distilled", "after the block-wise distillation"),
)


def _figure(plan: Mapping[str, Any]) -> Figure:
    from plotly.subplots import make_subplots

    layers = plan["layers"]
    panels = [("error of the outputs", _error), ("MACs saved", _macs_saved)]
    panels += [(f"ms saved on {escape(plan['timed_on'], quote=False)}", _ms_saved)] if plan["timed_on"] else []
    panels += [("cost to the classes, nats", _cost)] if any(layer["cost"] is not None for layer in layers) else []
    titles = [title for title, _ in panels]
    figure = make_subplots(
        rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles
    )  # fmt: skip
    for column, (_, value) in enumerate(panels, start=1):
        for accepted in (True, False):
            figure.add_trace(_bars(layers, value, accepted, shown=column == 1), row=1, col=column)
    marks = [f"{'✓' if layer['accepted'] else '✗'} {_short(layer['name'])}" for layer in layers]
    figure.update_yaxes(
        autorange="reversed", showgrid=False, zeroline=False, tickvals=list(range(len(layers))), ticktext=marks
    )
    figure.update_xaxes(nticks=4)
    figure.update_annotations(font_size=13)
    legend = {"orientation": "h", "y": -0.06, "yanchor": "top", "x": 0}
    figure.update_layout(
        height=130 + 24 * len(layers), margin={"l": 10, "r": 20, "t": 40, "b": 50}, bargap=0.3, barmode="overlay",
        legend=legend,
    )  # fmt: skip
    return _json(figure)


def _bars(layers: Sequence[Mapping[str, Any]], value: Any, accepted: bool, shown: bool) -> Any:
    import plotly.graph_objects as go

    ours = [(place, layer) for place, layer in enumerate(layers) if layer["accepted"] is accepted]
    colour, name = (ACCEPTED, "replaced") if accepted else (REJECTED, "stays")
    return go.Bar(
        x=[value(layer) for _, layer in ours],
        y=[place for place, _ in ours],
        orientation="h",
        marker={"color": colour, "pattern": {"shape": "" if accepted else "/"}},
        name=name,
        legendgroup=name,
        showlegend=shown and bool(ours),
        hoverinfo="text",
        hovertext=[_hover(layer) for _, layer in ours],
    )


def _hover(layer: Mapping[str, Any]) -> str:
    cells = _cells(layer)
    lines = [f"<b>{escape(layer['name'], quote=False)}</b> {escape(layer['shape'], quote=False)}"]
    lines += [f"error {cells['error']}, {cells['macs']} MACs, {cells['ms']} ms"]
    words = escape(cells["reason"], quote=False).split("; ")
    return "<br>".join([*lines, f"<b>{cells['verdict']}</b>", *words])


def _cells(layer: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": layer["name"],
        "shape": layer["shape"],
        "error": _NOTHING if layer["error"] is None else f"{layer['error']:.3f}",
        "macs": f"{numbers.count(layer['dense_macs'])} to {numbers.count(layer['new_macs'])}",
        "ms": _NOTHING
        if layer["dense_ms"] is None
        else f"{numbers.significant(layer['dense_ms'])} to {numbers.significant(layer['new_ms'])}",
        "cost": _NOTHING if layer["cost"] is None else f"{layer['cost']:.3g}",
        "verdict": "✓ replaced" if layer["accepted"] else "✗ stays",
        "kind": "pass" if layer["accepted"] else "fail",
        "reason": layer["reason"],
    }


def _error(layer: Mapping[str, Any]) -> float | None:
    return None if layer["error"] is None else float(layer["error"])


def _macs_saved(layer: Mapping[str, Any]) -> float:
    return float(layer["dense_macs"] - layer["new_macs"])


def _ms_saved(layer: Mapping[str, Any]) -> float | None:
    return None if layer["dense_ms"] is None else float(layer["dense_ms"] - layer["new_ms"])


def _cost(layer: Mapping[str, Any]) -> float | None:
    return None if layer["cost"] is None else float(layer["cost"])


def _short(name: str) -> str:
    return escape(name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}", quote=False)
