"""The page of a search: the front, each of its trials with its recipe, importances, the history. It loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.report.figure import Bars, BarTable, Figure, Fill, Key, Line, Mark, Panel
from edgewise.report.page import load_template
from edgewise.report.scale import Scale, linear_scale
from edgewise.report.summary import SYMBOLS, WORDS
from edgewise.report.svg import draw_bars, draw_figure
from edgewise.search.document import Document
from edgewise.search.quantities import Measure
from edgewise.search.records import Record
from edgewise.search.worker import show_figure
from edgewise.store.whole import write_whole

FILE = "report.html"
_FRONT, _OTHER, _BROKEN, _BEST = "#0072b2", "#8a8f98", "#b3261e", "#d55e00"


def write_page(document: Document, folder: Path) -> Path:
    """Write ``folder/report.html`` whole and return its path."""
    return write_whole(folder / FILE, render_page(document))


def render_page(document: Document) -> str:
    """The page as text."""
    front = document.front
    figures = [draw_figure(figure) for figure in (draw_front(document), draw_history(document)) if figure is not None]
    return load_template("search.html.j2", script=bool(figures)).render(
        title=document.request.name,
        facts=_facts(document),
        symbols=SYMBOLS,
        words=WORDS,
        verdict=_verdict(document),
        head=_headline(document),
        choice=document.choice,
        chosen=_choice_cells(document),
        front_chart=figures[0] if document.front or len(figures) > 1 else "",
        history=figures[-1] if figures else "",
        names=[str(measure) for measure in document.request.objectives],
        front=[_trial(record, document) for record in front],
        importances=[draw_bars(table) for table in importance_bars(document)],
        trials=[_trial(record, document) for record in document.trials if record.fate != "dropped"],
        dropped=[record for record in document.trials if record.fate == "dropped" and record.reason],
        stopped=sum(record.fate == "stopped" for record in document.trials),
        reuse=document.reuse,
        storage=document.storage,
        settings=document.settings,
    )


def _facts(document: Document) -> list[tuple[str, str]]:
    request = document.request
    reached = [("limits", ", ".join(map(str, request.limits))), ("goals", ", ".join(map(str, request.goals)))]
    machine = str(document.settings.get("machine", ""))
    return [
        ("space", request.space),
        ("objectives", ", ".join(f"{m} ({m.direction})" for m in request.objectives)),
        *((name, text) for name, text in reached if text),
        ("sampler", request.sampler),
        ("finished trials", str(len(document.finished))),
        *([("times of", machine)] if request.timed else []),
    ]


def _verdict(document: Document) -> str:
    if document.choice is not None:
        return document.choice.verdict
    return "not-checked"


def _headline(document: Document) -> str:
    choice = document.choice
    if choice is None:
        return document.ended.capitalize() if document.ended else "The search goes on"
    word = {"pass": "passes", "fail": "fails", "not-checked": "is not decided"}[choice.verdict]
    return f"Trial {choice.number} is the choice, and {word} on the test set"


def _choice_cells(document: Document) -> list[tuple[str, str, str]]:
    """Measure, on the calibration images that chose it, on the test set."""
    choice = document.choice
    if choice is None:
        return []
    record = next(record for record in document.trials if record.number == choice.number)
    names = [name for name in record.figures if name in choice.figures]
    return [
        (name, _with_interval(name, record.figures[name]), _with_interval(name, choice.figures[name])) for name in names
    ]


def _with_interval(name: str, figure: Sequence[float]) -> str:
    value, low, high = figure
    text = show_figure(name, value)
    return text if low == high else f"{text} ({show_figure(name, low)} to {show_figure(name, high)})"


def _trial(record: Record, document: Document) -> dict[str, Any]:
    """What the tables say of a trial."""
    objectives = document.request.objectives
    chosen = document.choice is not None and document.choice.number == record.number
    cells = [
        (show_figure(str(m), record.figures[str(m)][0]), _interval_text(str(m), record.figures[str(m)]))
        if str(m) in record.figures
        else ("–", "")
        for m in objectives
    ]
    return {
        "number": record.number,
        "cells": cells,
        "answers": ", ".join(f"{name} {_plain(value)}" for name, value in record.values.items()),
        "recipe": record.recipe,
        "page": f"{record.folder}/report.html" if record.folder and record.fate == "whole" else "",
        "log": f"{record.folder}/run.log"
        if record.folder and record.fate == "stopped" and record.rung != "plan"
        else "",
        "verdict": _shown_verdict(record),
        "word": _word(record),
        "reason": record.reason,
        "seconds": f"{record.seconds:.0f}",
        "reused": f"{record.uses.get('reused_seconds', 0.0):.0f}",
        "chosen": chosen,
        "precision": record.precision,
    }


def _interval_text(name: str, figure: Sequence[float]) -> str:
    _, low, high = figure
    return "" if low == high else f"{show_figure(name, low)} to {show_figure(name, high)}"


def _shown_verdict(record: Record) -> str:
    if record.fate in ("running", "untimed"):
        return "not-checked"
    return "fail" if not record.is_feasible else record.verdict or "not-checked"


def _word(record: Record) -> str:
    if record.fate == "running":
        return "at work"
    if record.fate == "untimed":
        return "waits for its times"
    if record.fate == "stopped":
        return f"stopped: {record.rung}"
    if not record.is_feasible:
        return "beyond the limits"
    return WORDS["pass"] if record.verdict == "pass" else WORDS["not-checked"]


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_front(document: Document) -> Figure | None:
    """Every trial that came to a file: one panel for each objective beside the first, the front joined."""
    objectives = document.request.objectives
    whole = [record for record in document.trials if record.fate == "whole"]
    if not whole or len(objectives) < 2:
        return None
    panels = tuple(_front_panel(document, whole, other, objectives[0]) for other in objectives[1:])
    keys = (
        Key(text="on the front", colour=_FRONT),
        Key(text="within the limits", colour=_OTHER),
        Key(text="not decided", colour=_OTHER, fill="hollow"),
        Key(text="beyond the limits", colour=_BROKEN, fill="crossed"),
        *([Key(text="the choice", colour=_BEST, shape="star")] if document.choice else []),
    )
    return Figure(panels=panels, keys=keys)


def _front_panel(document: Document, whole: Sequence[Record], across: Measure, upright: Measure) -> Panel:
    front = document.front
    x, y = [_extent(measure, whole, front) for measure in (across, upright)]
    marks = [_mark(document, record, front, across, upright) for record in whole]
    points = sorted((_place(across, record), _place(upright, record)) for record in front)
    # Of three objectives a panel shows two: what lies on the front there need not lie on a line here.
    joined = len(points) > 1 and len(document.request.objectives) == 2
    lines = (Line(points=tuple(points), colour=_FRONT, thin=True),) if joined else ()
    title = _axis(across)
    return Panel(
        label=f"{_axis(upright)} against {title} of every trial; the table below holds the numbers of the front",
        x=linear_scale(x),
        y=linear_scale(y),
        x_title=title,
        y_title=_axis(upright),
        marks=tuple(marks),
        lines=lines,
        height=380,
    )


def _place(measure: Measure, record: Record) -> float:
    """A trial's value in the unit of the axis."""
    return _scaled(measure, record.figures[str(measure)][0])


def _extent(measure: Measure, whole: Sequence[Record], front: Sequence[Record]) -> list[float]:
    """What an axis is to hold: every trial's value, and the intervals of those on the front."""
    ends = [_scaled(measure, end) for record in front for end in record.figures[str(measure)]]
    return [*(_place(measure, record) for record in whole), *ends]


def _mark(document: Document, record: Record, front: Sequence[Record], across: Measure, upright: Measure) -> Mark:
    chosen = document.choice is not None and document.choice.number == record.number
    on_front = record in front
    colour = _BEST if chosen else _FRONT if on_front else _OTHER if record.is_feasible else _BROKEN
    fill: Fill = "crossed" if not record.is_feasible else "solid" if record.verdict == "pass" else "hollow"
    told = [f"trial {record.number}"]
    told += [f"{m} {_with_interval(str(m), record.figures[str(m)])}" for m in document.request.objectives]
    told += [", ".join(f"{name} {_plain(value)}" for name, value in record.values.items())]
    ranges = [_range(measure, record) if on_front else None for measure in (across, upright)]
    return Mark(
        x=_place(across, record),
        y=_place(upright, record),
        told="\n".join(told),
        colour=colour,
        shape="star" if chosen else "circle",
        fill="solid" if chosen else fill,
        name=str(record.number) if on_front else "",
        x_range=ranges[0],
        y_range=ranges[1],
    )


def _range(measure: Measure, record: Record) -> tuple[float, float] | None:
    _, low, high = record.figures[str(measure)]
    return None if low == high else (_scaled(measure, low), _scaled(measure, high))


def _scaled(measure: Measure, value: float) -> float:
    """A value in the unit of its axis."""
    factor = {"top1": 100.0, "drop": 100.0, "bytes": 1e-3, "peak_memory": 1e-6}.get(measure.quantity.name, 1.0)
    return value * factor


def _axis(measure: Measure) -> str:
    words = {
        "top1": "top-1 on the calibration images, %",
        "drop": "top-1 lost on the calibration images, points",
        "latency": "time, a share of the baseline's",
        "ms": "time of one call, ms",
        "bytes": "size of the file, kB",
        "peak_memory": "peak memory, MB",
    }[measure.quantity.name]
    return words + (f" ({measure.target})" if measure.target else "")


def draw_history(document: Document) -> Figure | None:
    """Each objective over the trials in their order, with the best within the limits so far as a line."""
    whole = [record for record in document.trials if record.fate == "whole"]
    if not whole:
        return None
    return Figure(panels=tuple(_history_panel(measure, whole) for measure in document.request.objectives))


def _history_panel(measure: Measure, whole: Sequence[Record]) -> Panel:
    points = [(float(record.number), _place(measure, record)) for record in whole]
    marks = tuple(
        Mark(
            x=x,
            y=y,
            told=f"trial {record.number}\n{measure} {show_figure(str(measure), record.figures[str(measure)][0])}",
            colour=_OTHER if record.is_feasible else _BROKEN,
            fill="solid" if record.is_feasible else "crossed",
        )
        for (x, y), record in zip(points, whole, strict=True)
    )
    best = _best_so_far(measure, whole)
    return Panel(
        label=f"{_axis(measure)} by the number of the trial",
        x=_count_scale([x for x, _ in points]),
        y=linear_scale([y for _, y in points]),
        x_title="number of the trial",
        y_title=_axis(measure),
        marks=marks,
        lines=(Line(points=tuple(best), colour=_FRONT),) if len(best) > 1 else (),
        height=240,
    )


def _count_scale(values: Sequence[float]) -> Scale:
    """An axis of whole numbers."""
    scale = linear_scale(values)
    return replace(scale, ticks=tuple((at, f"{at:.0f}") for at, _ in scale.ticks if float(at).is_integer()))


def _best_so_far(measure: Measure, whole: Sequence[Record]) -> list[tuple[float, float]]:
    """Steps: from the number of each feasible trial that is better than all before it to the next."""
    pick = max if measure.quantity.better == "higher" else min
    steps: list[tuple[float, float]] = []
    for record in whole:
        if record.is_feasible:
            value = _place(measure, record)
            level = pick(value, steps[-1][1]) if steps else value
            steps += [(float(record.number), steps[-1][1])] if steps else []
            steps.append((float(record.number), level))
    return steps


def importance_bars(document: Document) -> list[BarTable]:
    """One table: a row a parameter, a column an objective."""
    shares = document.importances
    names = list(dict.fromkeys(name for column in shares.values() for name in column))
    if not names:
        return []
    columns = tuple(_importance_column(f"share in {name}", column, names) for name, column in shares.items())
    colours = tuple(_FRONT for _ in names)
    return [BarTable(head="parameter", names=tuple(names), colours=colours, columns=columns, one_scale=True)]


def _importance_column(title: str, shares: Mapping[str, float], names: Sequence[str]) -> Bars:
    values = tuple(shares.get(name) for name in names)
    texts = tuple("–" if value is None else f"{value:.0%}" for value in values)
    return Bars(title=title, values=values, texts=texts, colour=_FRONT)
