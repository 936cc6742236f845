"""The analysis as one page that needs no network: where the parameters and the MACs sit, and memory over time."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from edgewise.measure.cost.layers import Analysis, Layer
from edgewise.measure.cost.show import si_amount, size_of

_KINDS = {
    "dense convolution": "#33658a",
    "pointwise convolution": "#55a5c9",
    "depthwise or grouped convolution": "#f2a541",
    "linear layer": "#8c5e9e",
    "attention and matrix product": "#c8553d",
    "other": "#a3abb3",
}
_INK, _LINE, _MEMORY = "#1f2933", "#e4e7eb", "#3a8f7b"
_NAMED_LAYERS = 48
"""With more bars than this, the axis names stages instead of layers."""


def write_picture(analysis: Analysis, path: Path) -> None:
    """Write a self-contained HTML page: bars of parameters and of MACs per layer, and activations alive over time.

    The file appears whole or not at all; an existing one is replaced.
    """
    body = _draw_figure(analysis).to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}
    )
    page = _PAGE.format(
        title=escape(analysis.model), cards=_summary_cards(analysis), size=_figure_height(analysis), figure=body
    )
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _figure_height(analysis: Analysis) -> str:
    return " × ".join(map(str, analysis.input_shape))


def _summary_cards(analysis: Analysis) -> str:
    totals = analysis.totals
    macs_saved = sum(layer.separable.macs for layer in analysis.layers if layer.separable)
    cards = [
        ("parameters", si_amount(totals.params)),
        ("MACs", si_amount(totals.macs)),
        ("weights", size_of(totals.weight_bytes)),
        ("peak activations", size_of(totals.peak_activation_bytes)),
        ("MACs separable layers could save", f"{macs_saved / max(totals.macs, 1):.0%}"),
    ]
    return "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in cards)


def _draw_figure(analysis: Analysis) -> Any:
    from plotly.subplots import make_subplots

    heads = ("Parameters per layer", "MACs per layer", "Activations alive while each layer runs")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=heads)
    for kind, colour in _KINDS.items():
        places = [(i, layer) for i, layer in enumerate(analysis.layers) if kind_of(layer) == kind]
        if places:
            figure.add_trace(
                _draw_bars(places, [layer.params for _, layer in places], kind, colour, first=True), row=1, col=1
            )
            figure.add_trace(
                _draw_bars(places, [layer.macs for _, layer in places], kind, colour, first=False), row=2, col=1
            )
    figure.add_trace(_memory(analysis), row=3, col=1)
    _style_figure(figure, analysis)
    return figure


def kind_of(layer: Layer) -> str:
    """The colour's key: what sort of computation the layer is."""
    if layer.window is not None and layer.macs:
        if layer.window.groups > 1:
            return "depthwise or grouped convolution"
        return "pointwise convolution" if set(layer.window.kernel) == {1} else "dense convolution"
    if layer.operator == "linear":
        return "linear layer"
    return "attention and matrix product" if layer.macs else "other"


def _draw_bars(places: list[tuple[int, Layer]], values: list[int], kind: str, colour: str, *, first: bool) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=[i for i, _ in places],
        y=values,
        name=kind,
        legendgroup=kind,
        showlegend=first,
        marker={"color": colour, "line": {"width": 0}},
        customdata=[_hover_texts(layer) for _, layer in places],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<br>%{customdata[3]}<extra></extra>",
    )


def _hover_texts(layer: Layer) -> tuple[str, str, str, str]:
    shapes = ", ".join("×".join(map(str, shape)) for shape in layer.inputs)
    return (
        escape(layer.name),
        f"{escape(layer.operator)}: {shapes} → {'×'.join(map(str, layer.output))}",
        f"{layer.params:,} parameters ({layer.params_share:.1%})",
        f"{layer.macs:,} MACs ({layer.macs_share:.1%})",
    )


def _memory(analysis: Analysis) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=list(range(len(analysis.layers))),
        y=[layer.alive_bytes / 2**20 for layer in analysis.layers],
        mode="lines",
        line={"shape": "hvh", "color": _MEMORY, "width": 1.5},
        fill="tozeroy",
        fillcolor="rgba(58, 143, 123, 0.25)",
        showlegend=False,
        customdata=[(escape(layer.name), size_of(layer.alive_bytes)) for layer in analysis.layers],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]} alive<extra></extra>",
    )


def _style_figure(figure: Any, analysis: Analysis) -> None:
    places, names = _ticks(analysis)
    figure.update_layout(
        height=1080,
        barmode="stack",
        bargap=0.15,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "system-ui, Segoe UI, Roboto, sans-serif", "size": 13, "color": _INK},
        legend={
            "orientation": "h",
            "y": 1.05,
            "yanchor": "bottom",
            "x": 0,
            "itemclick": False,
            "itemdoubleclick": False,
        },
        margin={"l": 70, "r": 20, "t": 110, "b": 20},
        hoverlabel={"bgcolor": "white", "font": {"color": _INK}},
    )
    figure.update_annotations(font={"size": 15}, x=0, xanchor="left")
    figure.update_xaxes(showgrid=False, zeroline=False, tickvals=places, ticktext=names, tickangle=60, linecolor=_LINE)
    figure.update_xaxes(range=[-0.7, len(analysis.layers) - 0.3], automargin=True)
    figure.update_yaxes(gridcolor=_LINE, zerolinecolor=_LINE, rangemode="tozero")
    figure.update_yaxes(title="MiB", row=3, col=1)
    _mark_peak(figure, analysis)


def _mark_peak(figure: Any, analysis: Analysis) -> None:
    if not analysis.layers:
        return
    place, layer = max(enumerate(analysis.layers), key=lambda at: at[1].alive_bytes)
    late = place > len(analysis.layers) / 2
    figure.add_annotation(
        x=place,
        y=layer.alive_bytes / 2**20,
        text=f"peak {size_of(layer.alive_bytes)}: {escape(layer.name)}",
        showarrow=True,
        ax=-40 if late else 40,
        ay=-18,
        xanchor="right" if late else "left",
        row=3,
        col=1,
    )


def _ticks(analysis: Analysis) -> tuple[list[int], list[str]]:
    """Where to name what: layers with weights while they fit, else where each stage of the network begins."""
    ticks = [(i, layer.name) for i, layer in enumerate(analysis.layers) if layer.params]
    for depth in (None, 3, 2, 1):
        starts = _run_starts([(i, ".".join(name.split(".")[:depth])) for i, name in ticks])
        if len(starts) <= _NAMED_LAYERS:
            break
    gap = len(analysis.layers) / _NAMED_LAYERS
    spaced: list[tuple[int, str]] = []
    for place, name in starts:
        if not spaced or place - spaced[-1][0] >= gap:
            spaced.append((place, name))
    return [place for place, _ in spaced], [escape(name) for _, name in spaced]


def _run_starts(named: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first place of every run of equal names."""
    return [at for at, before in zip(named, [(-1, ""), *named], strict=False) if at[1] != before[1]]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1240px; padding: 28px 24px; color: #1f2933;
        font-family: system-ui, "Segoe UI", Roboto, sans-serif; background: white; }}
h1 {{ margin: 0; font-size: 26px; }}
p {{ margin: 4px 0 20px; color: #616e7c; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 12px; }}
.cards div {{ flex: 1; min-width: 150px; padding: 12px 16px; border: 1px solid #e4e7eb; border-radius: 8px; }}
.cards b {{ display: block; font-size: 22px; }}
.cards span {{ font-size: 13px; color: #616e7c; }}
</style></head><body>
<h1>{title}</h1>
<p>One image of {size}: where the parameters and the MACs sit, and how much activation memory is alive.</p>
<div class="cards">{cards}</div>
{figure}
</body></html>
"""
