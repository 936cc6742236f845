"""What a pruning step tells, as parts of the page: its budget, its trials, the scan, the latency table, the widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgewise.report import numbers
from edgewise.report.document import Section
from edgewise.report.rows import Row

SHOWN = (
    "budget", "accuracy_budget", "channel_sensitivity", "latency_table", "widths", "reconstruction", "left_alone",
    "averaging_norms", "removed_blocks", "recovery",
)  # fmt: skip
"""The facts that these parts show, so that nothing else need."""

_GREY, _BLUE = "#8a8f98", "#0072b2"


def sections(named: Sequence[tuple[Row, str]]) -> list[Section]:
    """The parts of every (row, name) that pruned."""
    parts = []
    for row, name in named:
        facts: Mapping[str, Any] = row.facts
        if facts.get("removed_blocks"):
            parts.append(Section(title=f"Blocks of {name}", html=_blocks(facts["removed_blocks"])))
            if facts.get("reconstruction"):
                title = f"How far each layer's answers are off ({name})"
                parts.append(Section(title=title, figure=_reconstruction(facts["reconstruction"])))
        if not isinstance(facts.get("budget"), Mapping):
            continue
        if "wanted" in facts["budget"]:
            parts.append(Section(title=f"Budget of {name}", html=_budget(facts["budget"])))
        if "accuracy_budget" in facts:
            parts.append(Section(title=f"Trials of {name}", html=_trials_text(facts["accuracy_budget"])))
        for key, title, draw in (
            ("channel_sensitivity", "What each layer's channels are worth", _sensitivity),
            ("latency_table", "What each width of a layer costs", _latency_table),
            ("widths", "Channels before and after", _widths),
            ("reconstruction", "How far each layer's answers are off", _reconstruction),
        ):
            if facts.get(key):
                parts.append(Section(title=f"{title} ({name})", figure=draw(facts[key])))
        if facts.get("left_alone") or facts.get("averaging_norms"):
            parts.append(Section(title=f"Layers left alone ({name})", html=_left_alone(facts)))
    return parts


def _left_alone(facts: Mapping[str, Any]) -> str:
    """Every layer that keeps channels, with the reason; and how the cuts at norms were checked."""
    layers = facts.get("left_alone", ())
    rows = [[entry["layer"], f"{entry['stay']:,} of {entry['width']:,}", entry["reason"]] for entry in layers]
    table = _html_table(["layer", "output channels that stay", "why"], rows) if rows else ""
    norms = facts.get("averaging_norms", ())
    return table + (f"<p>{escape(_AVERAGING + ', '.join(norms))}.</p>" if norms else "")


_AVERAGING = (
    "Every cut was tried: its logits are those of the network with the removed channels ignored. Where a norm averages "
    "over channels, ignored means that it averages over those that are left (a group norm loses as many of each of its "
    "groups): "
)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _budget(budget: Mapping[str, Any]) -> str:
    """Asked, predicted and measured side by side, then every trial."""
    if "measured" not in budget:
        share = f"{budget['left'] / budget['before']:.1%}" if budget["before"] else "–"
        row = [budget["budget"], _amount(budget["before"]), f"{budget['wanted']:.1%}", share]
        return _html_table(["of what", "before", "wanted", "left"], [row])
    unit = "ms" if budget["budget"] == "milliseconds" else "bytes"
    keys = ("before", "wanted", "predicted", "measured")
    first = [
        f"{budget['on']}, {unit}",
        *(_amount(budget[key]) for key in keys),
        _difference_text(budget["measured"], budget["wanted"]),
    ]
    head = ["on", "before", "wanted", "predicted", "measured", "measured to wanted"]
    trials = [
        [
            str(number),
            _amount(trial["predicted"]),
            _amount(trial["measured"]),
            _difference_text(trial["measured"], trial["predicted"]),
        ]
        for number, trial in enumerate(budget["trials"], 1)
    ]
    return _html_table(head, [first]) + _html_table(["trial", "predicted", "measured", "measured to predicted"], trials)


def _trials_text(facts: Mapping[str, Any]) -> str:
    rule = f"At most {100 * facts['max_drop']:.2f} points of top-1 on {facts['n']:,} calibration images may go."
    rows = [
        [
            str(number),
            f"{trial['part']:.0%}",
            "–" if trial["drop"] is None else f"{0 - 100 * trial['drop']:+.2f}",
            trial["outcome"],
        ]
        for number, trial in enumerate(facts["trials"], 1)
    ]
    head = ["trial", "of the reduction", "top-1, points", "outcome"]
    return f"<p>{escape(rule)}</p>" + _html_table(head, rows)


def _blocks(plan: Mapping[str, Any]) -> str:
    """Asked and measured, then every block: what it saves, whether and when it went, and what that lost."""
    lines = []
    if plan["whole_ms"] is not None:
        share = f"{plan['measured']:.1%} of {numbers.significant(plan['whole_ms'])} ms are left"
        lines.append(share + ("" if plan["wanted"] is None else f", {plan['wanted']:.1%} wanted"))
    rows = [
        [
            block["block"],
            "a shortcut" if block["residual"] else "nothing",
            "–" if block["saves"] is None else f"{block['saves']:.1%}",
            "stays" if block["removed"] is None else f"went, number {block['removed'] + 1}",
            "–" if block["rise"] is None else f"{block['rise']:.4f}",
        ]
        for block in plan["blocks"]
    ]
    head = ["block", "what stands in its place", "of the time", "outcome", "nats lost then"]
    return "".join(f"<p>{escape(line)}.</p>" for line in lines) + _html_table(head, rows)


def _amount(value: float) -> str:
    return numbers.significant(value) if value < 1000 else f"{value:,.0f}"


def _difference_text(value: float, target: float) -> str:
    return f"{value / target - 1:+.1%}" if target else "–"


def _sensitivity(scan: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(group),
            "x": [100 * float(ratio) for ratio in curve],
            "y": [100 * reading["top1"] for reading in curve.values()],
            "hovertext": [
                f"{escape(group)}: {100 * float(ratio):g} % removed, top-1 {100 * reading['top1']:.2f} %, "
                f"loss {reading['loss']:.3f}"
                for ratio, reading in curve.items()
            ],
            "hoverinfo": "text",
            "marker": {"size": 5},
        }
        for group, curve in scan.items()
    ]
    return {
        "data": lines,
        "layout": _layout("channels of this layer alone removed, %", "top-1 on calibration images, %"),
    }


def _latency_table(kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lines = []
    for number, kind in enumerate(kinds):
        label = f"{kind['layer']}, {'×'.join(map(str, kind['settings'].get('input', [])))} (×{kind['layers']})"
        for side, dash in (("inputs", "solid"), ("outputs", "dot")):
            times = {int(width): ms for width, ms in kind[f"ms_by_{side}"].items()}
            if len(times) > 1:
                line = {"dash": dash, "color": _COLOURS[number % len(_COLOURS)]}
                text = [f"{escape(label)}: {width} {side}, {ms:.4f} ms" for width, ms in times.items()]
                lines.append(
                    {"type": "scatter", "mode": "lines+markers", "name": f"{escape(label)}, {side}", "line": line}
                    | {"x": list(times), "y": list(times.values()), "hovertext": text, "hoverinfo": "text"}
                )
    return {"data": lines, "layout": _layout("channels (solid: inputs, dotted: outputs)", "ms of the layer alone")}


_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#9a7d0a", "#d55e00", "#8a8f98")


def _widths(widths: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    return _pairs_figure(widths, "channels", ("before", "after"))


def _reconstruction(errors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return _pairs_figure(errors, "relative error of the outputs", ("as it was cut", "fitted anew"))


def _pairs_figure(pairs: Mapping[str, Sequence[float]], what: str, labels: tuple[str, str]) -> dict[str, Any]:
    """Two bars for every layer."""
    names = [escape(name) for name in pairs]
    bars = [
        {"type": "bar", "name": label, "x": names, "y": [pair[place] for pair in pairs.values()]}
        | {"marker": {"color": color}}
        for place, (label, color) in enumerate(zip(labels, (_GREY, _BLUE), strict=True))
    ]
    return {"data": bars, "layout": _layout("", what) | {"barmode": "group", "xaxis": {"tickangle": -60}}}


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "height": 420,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 60},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "showlegend": True,
    }
