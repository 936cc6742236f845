"""Several runs on one page: what they were asked, what each step and file came to, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.errors import RequestError
from edgewise.report import numbers
from edgewise.report.document import Report
from edgewise.report.figure import Figure, Key, Mark, Panel
from edgewise.report.page import load_template
from edgewise.report.rows import Row
from edgewise.report.scale import Scale, linear_scale, logarithmic_scale
from edgewise.report.summary import SYMBOLS, WORDS, Summary, open_points, row_labels, summarize
from edgewise.report.svg import SHAPES, draw_figure
from edgewise.store.whole import write_whole

FILE = "comparison.html"
COLUMNS = ("run", "top-1, %", "change, points", "params, MACs", "bytes", "time, ms", "ratio", "verdict")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MACHINE = ("cpu", "threads", "python", "torch")

Named = tuple[str, Report]


def named_reports(folders: Sequence[Path]) -> list[Named]:
    """Each folder's report with a name of its own: the recipe's where no other run has it, else the folder's.

    Raises RequestError for a folder without a report, and for one that is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RequestError("wanted different runs to lay side by side, found one folder twice")
    reports = [Report.read(folder) for folder in folders]
    names = [str(report.recipe.get("name") or folder) for report, folder in zip(reports, folders, strict=True)]
    return [
        (name if names.count(name) == 1 else str(folder), report)
        for name, report, folder in zip(names, reports, folders, strict=True)
    ]


def write_comparison(runs: Sequence[Named], path: Path) -> Path:
    """Write the page to ``path``, whole or not at all, and return it. Raises StoreError where it cannot."""
    return write_whole(path, render_comparison(runs))


def render_comparison(runs: Sequence[Named]) -> str:
    """The page as text."""
    figure = draw_chart(runs)
    return load_template("comparison.html.j2", script=figure is not None).render(
        title=" and ".join(name for name, _ in runs),
        runs=[_report_head(name, report) for name, report in runs],
        symbols=SYMBOLS,
        chart=draw_figure(figure) if figure else "",
        columns=COLUMNS,
        groups=_group_rows(runs),
        asked=differing_keys([_flatten_values(report.recipe) for _, report in runs]),
        machines=differing_keys([_machine_fields(report) for _, report in runs]),
        names=[name for name, _ in runs],
    )


def _report_head(name: str, report: Report) -> dict[str, Any]:
    summary: Summary = summarize(report)
    return {"name": name, "summary": summary, "open": open_points(report.rows), "recommended": report.recommended}


def _group_rows(runs: Sequence[Named]) -> list[dict[str, Any]]:
    """Step or file -> the line of each run that has it, in the order of the first run that does."""
    tables = [dict(zip(row_labels(report.rows), report.rows, strict=True)) for _, report in runs]
    order = dict.fromkeys(label for table in tables for label in table)
    sequence = sorted(order, key=lambda label: any(t[label].step == "artifact" for t in tables if label in t))
    names = [name for name, _ in runs]
    return [
        {"label": label, "lines": [_row_line(n, t[label]) for n, t in zip(names, tables, strict=True) if label in t]}
        for label in sequence
    ]


def _row_line(name: str, row: Row) -> dict[str, Any]:
    accuracy, latency = row.accuracy, row.latency
    cells = [
        numbers.percent(accuracy.top1) if accuracy else "–",
        numbers.points(accuracy.vs_baseline.delta) if accuracy and row.step != "baseline" else "",
        f"{numbers.count(row.params)}, {numbers.count(row.macs)}",
        numbers.size(row.bytes),
        f"{numbers.significant(latency.p50_ms)} {latency.on}" if latency else "–",
        numbers.ratio(latency.ratio_to_baseline) if latency else "–",
    ]
    return {"name": name, "cells": cells, "verdict": row.verdict, "word": WORDS[row.verdict]}


def draw_chart(runs: Sequence[Named]) -> Figure | None:
    """Every run's files: change of top-1 against the share of the baseline's time and against bytes; a colour a run."""
    files = [
        (index, label, row)
        for index, (_, report) in enumerate(runs)
        for label, row in zip(row_labels(report.rows), report.rows, strict=True)
        if row.step == "artifact" and row.accuracy
    ]
    targets = list(dict.fromkeys(row.target for _, _, row in files))
    y = linear_scale(
        [end * 100 for _, _, row in files if row.accuracy for end in row.accuracy.vs_baseline.ci95], zero=True
    )
    panels, times = [], [row for _, _, row in files if row.latency]
    if times:
        x = linear_scale([end for row in times if row.latency for end in row.latency.ci95] + [1.0], zero=True)
        panels.append(
            _draw_panel("time of one image, a share of the baseline's on the same runtime", files, targets, x, y, runs)
        )
    if sizes := [float(row.bytes) for _, _, row in files if row.bytes]:
        axis = logarithmic_scale(sizes, lambda value: numbers.size(round(value)))
        panels.append(_draw_panel("bytes on disk (log scale)", files, targets, axis, y, runs))
    keys = [Key(text=name, colour=_COLOURS[i % len(_COLOURS)]) for i, (name, _) in enumerate(runs)]
    keys += [Key(text=str(name), colour="#8a8f98", shape=_shape(targets, name)) for name in targets]
    return Figure(panels=tuple(panels), keys=tuple(keys)) if panels else None


def _shape(names: Sequence[str | None], name: str | None) -> str:
    return SHAPES[1 + names.index(name) % (len(SHAPES) - 1)]


def _draw_panel(
    title: str,
    files: Sequence[tuple[int, str, Row]],
    names: Sequence[str | None],
    x: Scale,
    y: Scale,
    runs: Sequence[Named],
) -> Panel:
    marks = []
    for index, label, row in files:
        at = row.bytes if x.log else row.latency.ratio_to_baseline if row.latency else None
        if row.accuracy is None or not at:
            continue
        change = row.accuracy.vs_baseline
        facts = [f"top-1 {numbers.percent(row.accuracy.top1)} % ({numbers.points(change.delta)} points)"]
        facts += (
            [f"{numbers.ratio(row.latency.ratio_to_baseline)} the baseline's time on {row.latency.on}"]
            if row.latency
            else []
        )
        marks.append(
            Mark(
                x=at,
                y=change.delta * 100,
                told="\n".join([f"{runs[index][0]}: {label} ({WORDS[row.verdict]})", *facts, numbers.size(row.bytes)]),
                colour=_COLOURS[index % len(_COLOURS)],
                shape=_shape(names, row.target),
                fill="solid" if row.verdict == "pass" else "crossed" if row.verdict == "fail" else "hollow",
                x_range=row.latency.ci95 if row.latency and not x.log else None,
                y_range=(change.ci95[0] * 100, change.ci95[1] * 100),
            )
        )
    upright = () if x.log else (1.0,)
    label = f"Change of top-1 against {title}; the table below holds the same numbers"
    return Panel(
        label=label, x=x, y=y, x_title=title, y_title="change of top-1, points", marks=tuple(marks), across=(0.0,),
        upright=upright,
    )  # fmt: skip


def differing_keys(sides: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """The keys in which not all sides agree, each with every side's value; a dash where a side has none."""
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = [(key, [side.get(key, "–") for side in sides]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten_values(value: object, where: str = "") -> dict[str, str]:
    """Every plain value of a nested one under its path, as ``limits.max_drop`` or ``stages[1].ratio``."""
    if isinstance(value, Mapping):
        parts = [(f"{where}.{key}" if where else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)) and value:
        parts = [(f"{where}[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return {where: "–" if value is None or value == [] or value == () else str(value)}
    return {path: text for key, entry in parts for path, text in _flatten_values(entry, key).items()}


def _machine_fields(report: Report) -> dict[str, str]:
    environment = report.environment
    versions = environment.get("packages", {})
    packages = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
    return {key: str(environment[key]) for key in _MACHINE if key in environment} | packages
