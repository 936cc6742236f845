"""The picture of what quantizing each layer costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def draw_sensitivity(costs: Sequence[Mapping[str, Any]], left: Collection[str]) -> dict[str, Any]:
    """A Plotly figure: one bar a layer in the network's order of cost, those left in float in another colour."""
    costliest = list(reversed(costs[:60]))
    colours = ["#d55e00" if cost["layer"] in left else "#0072b2" for cost in costliest]
    texts = [f"{cost['operation']}, same class on {100 * cost['agreement']:.1f} %" for cost in costliest]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": [cost["layer"] for cost in costliest],
        "x": [cost["kl"] for cost in costliest],
        "hovertext": texts,
        "marker": {"color": colours},
    }
    layout = {
        "height": 80 + 18 * len(costliest),
        "margin": {"l": 200, "r": 20, "t": 20, "b": 50},
        "xaxis": {"title": {"text": "divergence from the float network when this layer alone is quantized, nats"}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return {"data": [bar], "layout": layout}
