"""A chart as plain values: what is drawn where, before anybody decides how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise.report.scale import Scale

Fill = Literal["solid", "hollow", "crossed"]
"""How a mark is filled: solid, outlined, or outlined with a cross through it."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One measurement."""

    x: float
    y: float
    told: str
    """What a reader is told who points at it, lines separated by newlines; plain text."""
    colour: str
    shape: str = "circle"
    fill: Fill = "solid"
    name: str = ""
    """A few characters written beside it."""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    group: str = ""
    """What it belongs to, for a reader who wants to see some groups only."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined in their order."""

    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False
    thin: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """An upright bar from ``low`` to ``high``, ``width`` wide around ``x``."""

    x: float
    low: float
    high: float
    colour: str
    told: str
    width: float = 0.85


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes and what lies between them."""

    label: str
    """What a reader who cannot see it is told."""
    x: Scale
    y: Scale
    x_title: str
    y_title: str
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    columns: tuple[Column, ...] = ()
    across: tuple[float, ...] = ()
    """Values of ``y`` at which a dotted line runs through."""
    upright: tuple[float, ...] = ()
    """Values of ``x`` at which one does."""
    height: int = 300
    """Of the area between the axes, in CSS pixels; the width is the reader's."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend."""

    text: str
    colour: str
    shape: str = "circle"
    fill: Fill = "solid"
    name: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels side by side where there is room, with one legend."""

    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One column of a table of bars."""

    title: str
    values: tuple[float | None, ...]
    texts: tuple[str, ...]
    """Written beside each bar."""
    ranges: tuple[tuple[float, float] | None, ...] = ()
    """Each value's interval; empty: none has one."""
    colour: str = ""
    """Of all its bars; empty: each row's own."""


@dataclass(frozen=True, kw_only=True)
class BarTable:
    """Bars beside their names, a table to whoever reads it without seeing it."""

    head: str
    """What the names are."""
    names: tuple[str, ...]
    colours: tuple[str, ...]
    columns: tuple[Bars, ...]
    one_scale: bool = False
    """Whether all columns hold the same quantity, so that bars of one length stand for one value."""
    told: tuple[str, ...] = ()
    """More about each row, shown to whoever points at it; empty: nothing more."""
    groups: tuple[str, ...] = ()
