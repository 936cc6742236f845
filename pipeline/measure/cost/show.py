"""The analysis as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgewise.measure.cost.layers import Analysis, Layer, Shape

if TYPE_CHECKING:
    from rich.console import RenderableType


_NAME = 37
"""Width of the column of names, of the 100 that the table may take."""


def to_json(analysis: Analysis) -> dict[str, Any]:
    """``{"model", "input_shape", "layers": [...], "totals": {...}, "unused"}``, of plain lists, numbers and strings."""
    return {
        "model": analysis.model,
        "input_shape": list(analysis.input_shape),
        "layers": [_layer_json(layer) for layer in analysis.layers],
        "totals": asdict(analysis.totals),
        "unused": list(analysis.unused),
    }


def _layer_json(layer: Layer) -> dict[str, Any]:
    window, field = layer.window, layer.field
    return {
        "name": layer.name,
        "module": layer.module,
        "operator": layer.operator,
        "inputs": [list(shape) for shape in layer.inputs],
        "output": list(layer.output),
        "kernel": list(window.kernel) if window else None,
        "stride": list(window.stride) if window else None,
        "padding": list(window.padding) if window else None,
        "dilation": list(window.dilation) if window else None,
        "groups": window.groups if window else None,
        "receptive_field": list(field.size) if field else None,
        "jump": list(field.jump) if field else None,
        "params": layer.params,
        "params_share": layer.params_share,
        "macs": layer.macs,
        "macs_share": layer.macs_share,
        "activation_bytes": layer.activation_bytes,
        "alive_bytes": layer.alive_bytes,
        "flops_per_byte": layer.intensity,
        "separable": asdict(layer.separable) if layer.separable else None,
    }


def layer_table(analysis: Analysis) -> RenderableType:
    """The layers, two lines each, for a terminal of 100 columns; under them the totals and what is worth knowing."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    size = "×".join(map(str, analysis.input_shape))
    grid = Table(title=f"{analysis.model} at {size}", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("layer\n  operator", overflow="fold", max_width=_NAME)
    grid.add_column("input\n→ output", overflow="fold", max_width=18)
    for head in ("field", "params\nof all", "MACs\nof all", "output\nalive", "FLOP/B", "separable\nsaves MACs"):
        grid.add_column(head, justify="right", no_wrap=True)
    for layer in analysis.layers:
        grid.add_row(*(Text(cell, style="" if layer.macs else "dim") for cell in _cells(layer)))
    return Group(grid, Text(""), *(Text(line) for line in _summary(analysis)))


def _cells(layer: Layer) -> tuple[str, ...]:
    saving = layer.separable
    return (
        f"{_name_ending(layer.name)}\n  {layer.operator}{_geometry(layer)}",
        f"{_shape(layer.inputs[0]) if layer.inputs else ''}\n→ {_shape(layer.output)}",
        _field_text(layer),
        f"{si_amount(layer.params)}\n{layer.params_share:.1%}" if layer.params else "",
        f"{si_amount(layer.macs)}\n{layer.macs_share:.1%}" if layer.macs else "",
        f"{size_of(layer.activation_bytes)}\n{size_of(layer.alive_bytes)}",
        f"{layer.intensity:.1f}" if layer.macs else "",
        f"{si_amount(saving.macs)}\n{saving.macs / layer.macs:.0%} of it" if saving else "",
    )


def _name_ending(name: str) -> str:
    """As much of the name's end as the column holds; the JSON has all of it."""
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]


def _geometry(layer: Layer) -> str:
    """Kernel, and what differs from stride 1, no padding, dilation 1, one group: ``3×3 s2 p1``."""
    window = layer.window
    if window is None:
        return ""
    parts = [_by(window.kernel)]
    parts += [f"s{_size_text(window.stride)}"] if set(window.stride) != {1} else []
    parts += [f"p{_size_text(window.padding)}"] if any(window.padding) else []
    parts += [f"d{_size_text(window.dilation)}"] if set(window.dilation) != {1} else []
    parts += [f"g{window.groups}"] if window.groups != 1 else []
    return " " + " ".join(parts)


def _size_text(values: Shape) -> str:
    return str(values[0]) if len(set(values)) == 1 else _by(values)


def _by(values: Shape) -> str:
    return "×".join(map(str, values))


def _shape(shape: Shape) -> str:
    """Without the batch of one."""
    return _by(shape[1:] if len(shape) > 1 and shape[0] == 1 else shape)


def _field_text(layer: Layer) -> str:
    if layer.field is None:
        return ""
    height, width = (f"{round(size, 1):g}" for size in layer.field.size)
    return height if height == width else f"{height}×{width}"


def _summary(analysis: Analysis) -> list[str]:
    totals = analysis.totals
    peak = max(analysis.layers, key=lambda layer: layer.alive_bytes, default=None)
    where = f" (in {peak.name})" if peak else ""
    lines = [
        f"{totals.params:,} parameters in {size_of(totals.weight_bytes)}, {totals.macs:,} MACs.",
        f"Activations take at most {size_of(totals.peak_activation_bytes)} at once{where}.",
        "field: receptive field in input pixels. alive: all activations in memory while the layer runs.",
        "FLOP/B: two per MAC, over the bytes of activations and weights, each read or written once.",
    ]
    if analysis.unused:
        count = len(analysis.unused)
        lines.append(
            f"Inference does not use {count} of the parameter tensors: {', '.join(analysis.unused[:4])}"
            + "…" * (count > 4)
        )
    return lines


def si_amount(value: float) -> str:
    """Three digits and a decimal prefix: 1.81 G."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        quotient = value / factor
        if quotient >= 1:
            return f"{quotient:.{2 if quotient < 9.995 else 1 if quotient < 99.95 else 0}f} {prefix}"
    return f"{value:.0f}"


def size_of(nbytes: int) -> str:
    """Bytes with a binary prefix: 9.19 MiB."""
    for factor, prefix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {prefix}"
    return f"{nbytes} B"
