"""Charts as HTML with SVG inside, made where the report is made: no script draws them, no library travels along.

Sideways everything is placed in percent, so that a chart takes the width it is given while its text keeps its size;
upwards in pixels. ``xml.etree`` writes the elements, so that no text from a report can become markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from edgewise.report.figure import Bars, BarTable, Column, Figure, Fill, Key, Line, Mark, Panel

if TYPE_CHECKING:
    from markupsafe import Markup


_SHAPES = {
    "circle": "M-5,0A5,5 0 1 1 5,0A5,5 0 1 1 -5,0Z",
    "diamond": "M0,-6.5L6.5,0L0,6.5L-6.5,0Z",
    "square": "M-5,-5H5V5H-5Z",
    "triangle": "M0,-6L6,5H-6Z",
    "star": "M0,-7L1.9,-2.2L7,-1.9L3,1.3L4.3,6.4L0,3.6L-4.3,6.4L-3,1.3L-7,-1.9L-1.9,-2.2Z",
    "hexagon": "M0,-6L5.2,-3V3L0,6L-5.2,3V-3Z",
    "cross": "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "wedge": "M0,6L6,-5H-6Z",
    "pentagon": "M0,-6L5.7,-1.9L3.5,4.9H-3.5L-5.7,-1.9Z",
}
SHAPES = tuple(_SHAPES)
_CROSS = "M-4,-4L4,4M-4,4L4,-4"
_NEAR = ((9, -7), (9, 15), (-9, -7), (-9, 15), (9, 4), (-9, 4), (0, -12), (0, 20))
"""Where a mark's name may stand, in pixels from the mark, the best place first."""
_GUESSED_WIDTH = 480
"""In pixels, of a panel nobody has shown yet: for deciding which names would lie over each other."""


def draw_figure(figure: Figure) -> Markup:
    """The figure as HTML: panels that stand side by side or below each other as there is room, then the legend."""
    root = Element("div", {"class": "figure"})
    panels = SubElement(root, "div", {"class": "panels"})
    for panel in figure.panels:
        panels.append(_draw_panel(panel))
    if figure.keys:
        root.append(_draw_legend(figure.keys))
    return _to_markup(root)


def draw_bars(table: BarTable) -> Markup:
    """A table of bars as HTML."""
    root = Element("table", {"class": "bars"})
    head = SubElement(SubElement(root, "thead"), "tr")
    SubElement(head, "th", {"scope": "col"}).text = table.head
    for column in table.columns:
        SubElement(head, "th", {"scope": "col"}).text = column.title
    body = SubElement(root, "tbody")
    rooms = [_column_range(column) for column in table.columns]
    if table.one_scale:
        rooms = [(min(low for low, _ in rooms), max(high for _, high in rooms))] * len(rooms)
    for index, name in enumerate(table.names):
        attributes = {"data-group": table.groups[index]} if table.groups else {}
        if table.told and table.told[index]:
            attributes["data-told"] = table.told[index]
        row = SubElement(body, "tr", attributes)
        SubElement(row, "th", {"scope": "row"}).text = name
        for column, room in zip(table.columns, rooms, strict=True):
            row.append(_bar_cell(column, index, room, column.colour or table.colours[index]))
    return _to_markup(root)


def _to_markup(root: Element) -> Markup:
    from markupsafe import Markup

    # As XML, which escapes more than HTML asks for; whole elements, since HTML knows no <p/>.
    return Markup(tostring(root, encoding="unicode", short_empty_elements=False))


def _draw_panel(panel: Panel) -> Element:
    widest = max((len(text) for _, text in panel.y.ticks), default=1)
    root = Element("figure", {"class": "panel", "style": f"--left: {widest * 7 + 14}px"})
    SubElement(root, "figcaption").text = panel.y_title
    box = {"class": "plot", "width": "100%", "height": str(panel.height), "role": "group", "aria-label": panel.label}
    svg = SubElement(root, "svg", box)
    _draw_axes(svg, panel)
    for line in panel.lines:
        _draw_line(svg, panel, line)
    for column in panel.columns:
        _draw_column(svg, panel, column)
    names = _places_of_names(panel)
    for mark, at in zip(panel.marks, names, strict=True):
        _draw_mark(svg, panel, mark, at)
    SubElement(root, "p", {"class": "axis"}).text = panel.x_title
    return root


def _percent(share: float) -> str:
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"


def _pixels_down(panel: Panel, value: float) -> float:
    """Pixels from the upper edge."""
    return round((1 - panel.y.place(value)) * panel.height, 1)


def _draw_axes(svg: Element, panel: Panel) -> None:
    for value, text in panel.y.ticks:
        y = str(_pixels_down(panel, value))
        SubElement(svg, "line", {"class": "grid", "x1": "0", "x2": "100%", "y1": y, "y2": y})
        SubElement(svg, "text", {"x": "-8", "y": y, "dy": ".32em", "text-anchor": "end"}).text = text
    for value, text in panel.x.ticks:
        x, bottom = _percent(panel.x.place(value)), panel.height
        SubElement(svg, "line", {"class": "grid", "x1": x, "x2": x, "y1": "0", "y2": str(bottom)})
        SubElement(svg, "text", {"x": x, "y": str(bottom + 18), "text-anchor": "middle"}).text = text
    for value in panel.across:
        y = str(_pixels_down(panel, value))
        SubElement(svg, "line", {"class": "rule", "x1": "0", "x2": "100%", "y1": y, "y2": y})
    for value in panel.upright:
        x = _percent(panel.x.place(value))
        SubElement(svg, "line", {"class": "rule", "x1": x, "x2": x, "y1": "0", "y2": str(panel.height)})


def _draw_line(svg: Element, panel: Panel, line: Line) -> None:
    kind = "path thin" if line.thin else "path"
    for (x1, y1), (x2, y2) in zip(line.points, line.points[1:], strict=False):
        ends = {"x1": _percent(panel.x.place(x1)), "y1": str(_pixels_down(panel, y1))}
        ends |= {"x2": _percent(panel.x.place(x2)), "y2": str(_pixels_down(panel, y2))}
        dashes = {"stroke-dasharray": "2 4"} if line.dashed else {}
        SubElement(svg, "line", {"class": kind, "stroke": line.colour, **ends, **dashes})


def _draw_column(svg: Element, panel: Panel, column: Column) -> None:
    left, right = (panel.x.place(column.x + side * column.width / 2) for side in (-1, 1))
    top, bottom = _pixels_down(panel, column.high), _pixels_down(panel, column.low)
    group = SubElement(svg, "g", _tooltip_attributes(column.told))
    box = {"x": _percent(left), "width": _percent(right - left), "y": str(top)}
    SubElement(group, "rect", {**box, "height": f"{max(0.0, bottom - top):.1f}", "fill": column.colour})


def _tooltip_attributes(text: str) -> dict[str, str]:
    """Attributes that let a pointer, a keyboard and a screen reader find out what a mark means."""
    return {"class": "mark", "role": "img", "tabindex": "-1", "aria-label": text.replace("\n", "; "), "data-told": text}


def _draw_mark(svg: Element, panel: Panel, mark: Mark, at: tuple[int, int]) -> None:
    group = SubElement(svg, "g", _tooltip_attributes(mark.told) | ({"data-group": mark.group} if mark.group else {}))
    x, y = _percent(panel.x.place(mark.x)), str(_pixels_down(panel, mark.y))
    whisker = {"class": "whisker", "stroke": mark.colour}
    if mark.x_range:
        low, high = (_percent(panel.x.place(end)) for end in mark.x_range)
        SubElement(group, "line", {**whisker, "x1": low, "x2": high, "y1": y, "y2": y})
    if mark.y_range:
        low, high = (str(_pixels_down(panel, end)) for end in mark.y_range)
        SubElement(group, "line", {**whisker, "x1": x, "x2": x, "y1": low, "y2": high})
    place = SubElement(group, "svg", {"x": x, "y": y, "overflow": "visible"})
    _draw_symbol(place, mark.shape, mark.colour, mark.fill)
    if mark.name:
        side = "middle" if not at[0] else "start" if at[0] > 0 else "end"
        words = {"class": "name", "x": str(at[0]), "y": str(at[1]), "text-anchor": side}
        SubElement(place, "text", words).text = mark.name


def _draw_symbol(parent: Element, shape: str, colour: str, fill: Fill) -> None:
    inside = colour if fill == "solid" else "var(--card)"
    SubElement(parent, "path", {"d": _SHAPES[shape], "fill": inside, "stroke": colour, "stroke-width": "1.6"})
    if fill == "crossed":
        SubElement(parent, "path", {"d": _CROSS, "stroke": colour, "stroke-width": "1.6", "fill": "none"})


def _places_of_names(panel: Panel) -> list[tuple[int, int]]:
    """For each mark where its name stands: at the first place that lies over no name before it and no mark."""
    marks = [(panel.x.place(mark.x) * _GUESSED_WIDTH, _pixels_down(panel, mark.y)) for mark in panel.marks]
    occupied_boxes, places = [(x, y, 7.0, 7.0) for x, y in marks], []
    for mark, (x, y) in zip(panel.marks, marks, strict=True):
        wide = 3.5 * len(mark.name) + _GAP
        boxes = [(x + dx + (wide if dx > 0 else -wide if dx < 0 else 0), y + dy - 4, wide, 6.0) for dx, dy in _NEAR]
        best = min(range(len(_NEAR)), key=lambda place: (_count_overlaps(boxes[place], occupied_boxes), place))
        occupied_boxes.append(boxes[best])
        places.append(_NEAR[best])
    return places


_GAP = 3.0
"""Pixels beside a name, so that two of them do not read as one number."""


def _count_overlaps(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> int:
    x, y, wide, high = box
    return sum(abs(x - a) < wide + w and abs(y - b) < high + h for a, b, w, h in others)


def _draw_legend(keys: Sequence[Key]) -> Element:
    root = Element("ul", {"class": "legend"})
    for key in keys:
        entry = SubElement(root, "li", {"data-group": key.group} if key.group else {})
        box = {"width": "16", "height": "16", "viewBox": "-8 -8 16 16", "aria-hidden": "true"}
        _draw_symbol(SubElement(entry, "svg", box), key.shape, key.colour, key.fill)
        if key.name:
            SubElement(entry, "b").text = key.name
        SubElement(entry, "span").text = key.text
    return root


def _column_range(column: Bars) -> tuple[float, float]:
    """The smallest and the largest value that a column's bars and intervals reach, zero included."""
    ends = [value for value in column.values if value is not None]
    ends += [end for ends_of in column.ranges if ends_of for end in ends_of]
    return min([0.0, *ends]), max([0.0, *ends])


def _bar_cell(column: Bars, index: int, room: tuple[float, float], colour: str) -> Element:
    cell = Element("td")
    value, (low, high) = column.values[index], room
    span = high - low or 1.0
    if value is not None:
        svg = SubElement(cell, "svg", {"width": "100%", "height": "14", "aria-hidden": "true"})
        start, end = sorted(((0 - low) / span, (value - low) / span))
        box = {"x": _percent(start), "width": _percent(end - start), "y": "1", "height": "12", "fill": colour}
        SubElement(svg, "rect", box)
        if column.ranges and (ends := column.ranges[index]):
            left, right = (_percent((edge - low) / span) for edge in ends)
            SubElement(svg, "line", {"class": "whisker", "x1": left, "x2": right, "y1": "7", "y2": "7"})
        if low < 0:
            zero = _percent(-low / span)
            SubElement(svg, "line", {"class": "zero", "x1": zero, "x2": zero, "y1": "0", "y2": "14"})
    SubElement(cell, "span").text = column.texts[index]
    return cell
