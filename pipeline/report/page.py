"""One page that holds everything: charts, rows, reasons, artifacts, recipe, environment. It loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.measure.values import Accuracy, Latency
from edgewise.report import charts, numbers, plotly_json, pruning
from edgewise.report.classes import below_top1, class_sections
from edgewise.report.devices import DeviceRow, ratio_words, time_words
from edgewise.report.document import Report, Section
from edgewise.report.figure import BarTable, Figure
from edgewise.report.markup import sanitize_html
from edgewise.report.plan import plan_pictures
from edgewise.report.rows import Row
from edgewise.report.summary import (  # fmt: skip
    SYMBOLS,
    WORDS,
    estimate_lines,
    open_points,
    reference_times,
    row_labels,
    shown_groups,
    summarize,
    target_groups,
    timing_note,
)
from edgewise.report.svg import draw_bars, draw_figure
from edgewise.store.whole import write_whole

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


FILE = "report.html"
_FOLDER = Path(__file__).parent


def write_html(report: Report, folder: Path) -> Path:
    """Write ``folder/report.html``, whole or not at all, and return its path. Raises StoreError where it cannot.

    Everything that came with the report is escaped, and the page's own policy (Content-Security-Policy) lets a
    browser run only the scripts written here and fetch nothing.
    """
    return write_whole(folder / FILE, render_page(report))


def frame_page(report: Report) -> str:
    """The page in a frame of its own, as a notebook shows it: its styles stay in it."""
    from html import escape

    style = "width: 100%; height: 85vh; border: 0"
    return f'<iframe title="Report" srcdoc="{escape(render_page(report))}" style="{style}"></iframe>'


def render_page(report: Report) -> str:
    """The page as text; the same for the same report."""
    from markupsafe import Markup

    names = list(zip(report.rows, row_labels(report.rows), strict=True))
    groups = shown_groups(report.rows)
    return load_template("report.html.j2", script=bool(report.rows)).render(
        title=_title(report),
        facts=_headline_facts(report),
        summary=summarize(report),
        open=open_points(report.rows),
        advice=report.advice(),
        symbols=SYMBOLS,
        timing=timing_note(report.rows),
        estimates=estimate_lines(report.rows),
        groups=groups,
        tradeoff=_draw_any(charts.draw_tradeoff(report.rows)),
        waterfall=_draw_any(charts.draw_waterfall(report.rows)),
        reference_times=reference_times(report.rows),
        unplotted=_unplotted_note(names),
        recommended=report.recommended,
        columns=COLUMNS,
        rows=[_row_cells(row, name, at) for (row, name), at in zip(names, target_groups(report.rows), strict=True)],
        plans=[vars(plan) | {"chart": draw_bars(plan.chart)} for plan in plan_pictures(names)],
        undelegated=[_undelegated_counts(row, name) for row, name in names if row.target is not None],
        coverage=[_coverage(row, name) for row, name in names if row.facts.get("coverage")],
        file_facts=[(name, facts) for row, name in names if (facts := _undrawn_facts(row.facts))],
        artifacts=[(entry, numbers.size(entry.bytes)) for entry in report.artifacts],
        devices=[_on_device(row) for row in report.devices],
        sections=list(map(_section_fields, [*pruning.sections(names), *class_sections(names), *report.sections])),
        recipe=report.recipe,
        environment=report.environment,
        hiding=Markup(_hiding_rules(groups)),
    )


def load_template(name: str, *, script: bool) -> Template:
    """One of this folder's templates, with the style and, where asked for, the script that its page carries."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(_FOLDER)
    engine = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["columns"] = _columns
    scripts = [(_FOLDER / "report.js").read_text(encoding="utf-8")] if script else []
    engine.globals["style"] = Markup((_FOLDER / "report.css").read_text(encoding="utf-8"))
    engine.globals["scripts"] = [Markup(entry) for entry in scripts]
    engine.globals["script_digests"] = list(map(_digest, scripts))
    return engine.get_template(name)


def _draw_any(figure: Figure | BarTable | str | None) -> Markup | str:
    if isinstance(figure, Figure):
        return draw_figure(figure)
    return draw_bars(figure) if isinstance(figure, BarTable) else figure or ""


def _hiding_rules(groups: Sequence[tuple[str, str]]) -> str:
    """The filter: rows and marks of a group vanish while its box is not ticked; no script is needed for it."""
    return "".join(
        f'body:has(#show-{group}:not(:checked)) [data-group="{group}"] {{ display: none; }}\n' for group, _ in groups
    )


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _title(report: Report) -> str:
    names = [report.recipe.get(key) for key in ("name", "recipe", "model")]
    return next((name for name in names if isinstance(name, str) and name), "Deployment report")


def _headline_facts(report: Report) -> list[tuple[str, str]]:
    """The few fields of the recipe that say what this is about, where they are short enough to be read at a glance."""
    fields = [(key, report.recipe.get(key)) for key in ("model", "weights", "data", "targets", "seed")]
    lists = [(key, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value) for key, value in fields]
    return [(key, str(value)) for key, value in lists if isinstance(value, (str, int)) and 0 < len(str(value)) <= 80]


def _unplotted_note(named: Sequence[tuple[Row, str]]) -> str:
    """Which rows a chart cannot show, and why."""
    nowhere = [name for row, name in named if row.accuracy is None]
    without_time = [name for row, name in named if row.accuracy and row.latency is None]
    parts = [f"{', '.join(nowhere)} (no accuracy measured)"] if nowhere else []
    parts += [f"{', '.join(without_time)} (no latency measured, so not on the left)"] if without_time else []
    return f"Not shown: {'; '.join(parts)}." if parts else ""


def _section_fields(section: Section) -> dict[str, Any]:
    from markupsafe import Markup

    if section.figure is not None:
        return {"title": section.title, "html": _draw_any(plotly_json.read_figure(section.figure, section.title))}
    return {"title": section.title, "html": Markup(sanitize_html(section.html or ""))}


COLUMNS = (
    "step, file", "top-1, %", "change, points", "same class as PyTorch, %", "params, MACs", "bytes", "time, ms", "ratio",
    "verdict", "took, s",
)  # fmt: skip


def _row_cells(row: Row, name: str, group: str) -> dict[str, Any]:
    """A table row's cells: for each the main text and the smaller one below it."""
    cells = [*_accuracy(row.accuracy, row.step == "baseline"), _agreement(row)]
    cells.append((numbers.count(row.params), f"{numbers.count(row.macs)} MACs"))
    cells.append(
        (numbers.size(row.bytes), f"{numbers.size(row.peak_bytes)} to run" if row.peak_bytes is not None else "")
    )
    cells += _latency(row.latency, row.step == "baseline")
    return {
        "label": name,
        "group": group,
        "kind": "" if name.startswith(row.step) else row.step,
        "cells": cells,
        "grade": row.verification or "",
        "verdict": row.verdict,
        "word": WORDS[row.verdict],
        "reason": row.reason,
        "seconds": numbers.significant(row.seconds),
    }


def _accuracy(accuracy: Accuracy | None, first: bool) -> list[tuple[str, str]]:
    if accuracy is None:
        return [("–", ""), ("–", "")]
    low, high = map(numbers.percent, accuracy.ci95)
    below = ", ".join(filter(None, (f"{low} to {high}, n {accuracy.n:,}", below_top1(accuracy))))
    top1 = (numbers.percent(accuracy.top1), below)
    if first:
        return [top1, ("", "")]
    change = accuracy.vs_baseline
    low, high = map(numbers.points, change.ci95)
    return [top1, (numbers.points(change.delta), f"{low} to {high}, p {change.p_value:.2g}")]


def _agreement(row: Row) -> tuple[str, str]:
    if row.agreement is None:
        return "", ""
    return numbers.percent(row.agreement.top1), f"logits within {row.agreement.max_abs:.2g}"


def _latency(latency: Latency | None, first: bool) -> list[tuple[str, str]]:
    if latency is None:
        return [("–", ""), ("–", "")]
    time = (numbers.significant(latency.p50_ms), f"p90 {numbers.significant(latency.p90_ms)}, {latency.on}")
    if first:
        return [time, ("", "")]
    low, high = map(numbers.ratio, latency.ci95)
    # The baseline's row has a time of another run: of that the ratio is none.
    of = "" if latency.baseline_ms is None else f", of {numbers.significant(latency.baseline_ms)} ms"
    return [time, (numbers.ratio(latency.ratio_to_baseline), f"{low} to {high}{of}")]


def _ran_in(row: DeviceRow) -> str:
    """The runtime, without its provider, and how it was measured."""
    parts = (row.runtime.partition(" (")[0], f"{row.threads} thread{'s' if row.threads > 1 else ''}", row.mode)
    return ", ".join(part for part in parts if part)


def _on_device(row: DeviceRow) -> dict[str, Any]:
    """The cells of a device's row."""
    time, accuracy = row.time, row.accuracy
    top1 = ("–", "") if accuracy is None else _accuracy(accuracy, True)[0]
    delta = ("–", "") if accuracy is None else _accuracy(accuracy, False)[1]
    spread = "" if time is None else f"p90 {numbers.significant(time.p90_ms)}"
    if time is not None and time.p99_ms is not None:
        spread += f", p99 {numbers.significant(time.p99_ms)}"
    load = "–" if row.load_ms is None else numbers.significant(row.load_ms)
    first = "" if row.first_call_ms is None else f"first call {numbers.significant(row.first_call_ms)}"
    cells = [top1, delta, (time_words(row), spread), (ratio_words(row).partition(" (")[0], _told_ratio(row))]
    cells += [("–" if time is None else numbers.significant(time.per_second), _sustained_text(row)), (load, first)]
    cells.append((numbers.size(row.peak_bytes), ""))
    return {
        "device": row.device,
        "system": row.system,
        "file": row.file,
        "runtime": _ran_in(row),
        "cells": cells,
        "verdict": row.verdict,
        "word": WORDS[row.verdict],
        "reason": "; ".join(part for part in (row.reason, "" if time is None else time.note) if part),
        "kind": row.kind,
    }


def _told_ratio(row: DeviceRow) -> str:
    return ratio_words(row).partition(" (")[2].rstrip(")")


def _sustained_text(row: DeviceRow) -> str:
    if row.time is None or row.time.last_over_first is None:
        return ""
    return f"last minute {numbers.ratio(row.time.last_over_first)} the first's time"


def _undrawn_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that no part of the page shows."""
    return {key: value for key, value in facts.items() if key != "plan" and key not in pruning.SHOWN}


def _columns(entries: Sequence[object]) -> list[str]:
    """The keys that all entries of a long list have in common, where it reads best as a table; else none."""
    if len(entries) < 2 or not all(isinstance(entry, Mapping) for entry in entries):
        return []
    rows = [dict(entry) for entry in entries if isinstance(entry, Mapping)]
    plain = not any(isinstance(value, (Mapping, list, tuple)) for row in rows for value in row.values())
    return [str(key) for key in rows[0]] if plain and all(row.keys() == rows[0].keys() for row in rows) else []


def _undelegated_counts(row: Row, name: str) -> tuple[str, list[tuple[str, int]]]:
    """The operators a file's accelerated backend left outside, each with its number of occurrences."""
    return name, Counter(row.undelegated).most_common()


def _coverage(row: Row, name: str) -> dict[str, Any]:
    """Which operators a file's backend took and left outside, with their MACs, the largest first."""
    coverage = row.facts["coverage"]
    entries = sorted(coverage["by_operator"].items(), key=lambda item: (-item[1]["macs"], item[0]))
    counts = row.facts.get("operators") or row.facts.get("delegated") or {}
    pairs = [sum(n for op, n in counts.items() if op.lower().startswith(word)) for word in ("quantize", "dequantize")]
    return {
        "name": name,
        "share": f"{1 - coverage['undelegated_share']:.1%}",
        "macs": numbers.count(coverage["macs"]),
        "pairs": pairs,
        "entries": [(op, e["delegated"], e["undelegated"], numbers.count(e["macs"])) for op, e in entries],
    }
