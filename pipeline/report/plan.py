"""The picture of a substitution plan: layer by layer what was accepted, what was rejected, and why.

A step tells its plan among its row's facts, under ``plan``: ``layers`` in order of execution, each with what it cost and
saved, whether it was ``accepted``, and the ``reason``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.report import numbers
from edgewise.report.figure import Bars, BarTable
from edgewise.report.rows import Row

Value = Callable[[Mapping[str, Any]], float | None]

ACCEPTED, REJECTED = "#009e73", "#d55e00"
"""Okabe and Ito's green and vermilion, distinguishable to colour-blind readers; the signs say the same."""
_NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One step's plan as the page shows it."""

    title: str
    summary: str
    chart: BarTable
    layers: Sequence[Mapping[str, str]]
    """For each layer the cells of its table row."""


def plan_pictures(named: Sequence[tuple[Row, str]]) -> list[Picture]:
    """A picture for every row that told a plan; ``named``: each row with what the page calls it."""
    return [_plan_picture(name, row.facts["plan"]) for row, name in named if _is_plan(row.facts.get("plan"))]


def _is_plan(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value.get("layers"))


def _plan_picture(name: str, plan: Mapping[str, Any]) -> Picture:
    return Picture(
        title=f"The plan of {name}, layer by layer",
        summary=_summary(plan),
        chart=_chart(plan),
        layers=[_cells(layer) for layer in plan["layers"]],
    )


def _summary(plan: Mapping[str, Any]) -> str:
    layers, dense, new = plan["layers"], plan["dense_macs"], plan["new_macs"]
    text = f"{plan['accepted']} of {len(layers)} layers replaced"
    if dense and new:
        text += f"; in them {numbers.count(dense)} multiply-accumulates became {numbers.count(new)}, {dense / new:.2f} times fewer"
    calibration = plan["calibration"]
    states = [(key, label) for key, label in _STATES if key in calibration]
    text += f". Top-1 on {calibration['n']:,} calibration images: "
    text += ", ".join(f"{numbers.percent(calibration[key])} % {label}" for key, label in states)
    if plan["max_drop"] is not None:
        text += f" (budget: {100 * plan['max_drop']:g} points at the fit)"
    return text + "."


_STATES = (
    ("before", "before"),
    ("substituted", "with the new forms"),
    ("distilled", "after the block-wise distillation"),
)


def _chart(plan: Mapping[str, Any]) -> BarTable:
    layers = plan["layers"]
    columns = [
        _bar_column("error of the outputs", layers, _layer_error, lambda value: f"{value:.3f}"),
        _bar_column("MACs saved", layers, _macs_saved, lambda value: numbers.signed_count(round(value))),
    ]
    if plan["timed_on"]:
        columns.append(_bar_column(f"ms saved on {plan['timed_on']}", layers, _ms_saved, numbers.significant))
    if any(layer["cost"] is not None for layer in layers):
        columns.append(_bar_column("cost to the classes, nats", layers, _layer_cost, lambda value: f"{value:.3g}"))
    return BarTable(
        head="layer",
        names=tuple(f"{'✓' if layer['accepted'] else '✗'} {_short_name(layer['name'])}" for layer in layers),
        colours=tuple(ACCEPTED if layer["accepted"] else REJECTED for layer in layers),
        columns=tuple(columns),
        told=tuple(map(_layer_note, layers)),
    )


def _bar_column(title: str, layers: Sequence[Mapping[str, Any]], value: Value, text: Callable[[float], str]) -> Bars:
    values = [value(layer) for layer in layers]
    texts = [_NOTHING if number is None else text(number) for number in values]
    return Bars(title=title, values=tuple(values), texts=tuple(texts))


def _layer_note(layer: Mapping[str, Any]) -> str:
    cells = _cells(layer)
    lines = [f"{layer['name']} {layer['shape']}", f"error {cells['error']}, {cells['macs']} MACs, {cells['ms']} ms"]
    return "\n".join([*lines, cells["verdict"], *cells["reason"].split("; ")])


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


def _layer_error(layer: Mapping[str, Any]) -> float | None:
    return None if layer["error"] is None else float(layer["error"])


def _macs_saved(layer: Mapping[str, Any]) -> float:
    return float(layer["dense_macs"] - layer["new_macs"])


def _ms_saved(layer: Mapping[str, Any]) -> float | None:
    return None if layer["dense_ms"] is None else float(layer["dense_ms"] - layer["new_ms"])


def _layer_cost(layer: Mapping[str, Any]) -> float | None:
    return None if layer["cost"] is None else float(layer["cost"])


def _short_name(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}"
