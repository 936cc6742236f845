"""Axes, charts and tables of bars, by numbers worked out by hand; and extra charts kept as Plotly's JSON."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest

from edgewise.report.figure import Bars, BarTable, Column, Figure, Key, Line, Mark, Panel
from edgewise.report.plotly_json import read_figure
from edgewise.report.scale import Scale, linear_scale, logarithmic_scale
from edgewise.report.svg import SHAPES, draw_bars, draw_figure

UNIT = Scale(low=0, high=10, ticks=((0, "0"), (5, "5")))


def panel(**changes: Any) -> Panel:
    plain: dict[str, Any] = {
        "label": "a chart",
        "x": UNIT,
        "y": UNIT,
        "x_title": "across",
        "y_title": "up",
        "height": 200,
    }
    return Panel(**plain | changes)


def drawn(figure: Figure) -> Element:
    return fromstring(str(draw_figure(figure)))


def of_class(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


# scales


def test_a_linear_axis_places_and_names_values() -> None:
    axis = linear_scale([0.0, 1.0], zero=True, margin=0.25)
    assert (axis.low, axis.high) == (0.0, 1.25) and axis.place(0.625) == 0.5
    assert axis.place(-3) == 0 and axis.place(9) == 1, "what lies outside stays at the edge"
    assert axis.ticks == ((0.0, "0.00"), (0.25, "0.25"), (0.5, "0.50"), (0.75, "0.75"), (1.0, "1.00"), (1.25, "1.25"))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([96.4, 99.7], ["97", "98", "99"]),
        ([0, 5000], ["0", "2,000", "4,000"]),
        ([-0.02, 0.02], ["−0.02", "−0.01", "0.00", "0.01", "0.02"]),
    ],
)
def test_ticks_stand_at_round_numbers(values: list[float], texts: list[str]) -> None:
    assert [text for _, text in linear_scale(values).ticks] == texts


@pytest.mark.parametrize("values", [[], [3.0], [0.0], [7.0, 7.0]])
def test_an_axis_of_one_value_or_none_still_has_a_width(values: list[float]) -> None:
    for axis in (linear_scale(values), linear_scale(values, zero=True)):
        assert axis.low < axis.high and axis.ticks and all(0 <= axis.place(value) <= 1 for value in values)
    assert logarithmic_scale([v for v in values if v > 0], str).high > 1


def test_a_logarithmic_axis_gives_each_decade_the_same_room() -> None:
    axis = Scale(low=1, high=100, log=True)
    assert axis.place(10) == pytest.approx(0.5)
    assert [value for value, _ in logarithmic_scale([10, 1000], str).ticks] == [10, 20, 50, 100, 200, 500, 1000]
    assert [value for value, _ in logarithmic_scale([10, 100_000], str).ticks] == [10, 100, 1000, 10_000, 100_000]


# charts


def test_a_mark_stands_where_its_numbers_say() -> None:
    mark = Mark(
        x=5, y=2.5, told="two\nlines", colour="red", x_range=(4, 7), y_range=(0, 10), name="1", group="target-0"
    )
    root = drawn(Figure(panels=(panel(marks=(mark,)),)))
    (group,) = of_class(root, "mark")
    place = group.find("svg")
    assert place is not None and (place.get("x"), place.get("y")) == ("50%", "150.0")
    assert (
        group.attrib | {"aria-label": "two; lines", "data-told": "two\nlines", "data-group": "target-0"} == group.attrib
    )
    across, up = of_class(group, "whisker")
    assert [across.get(end) for end in ("x1", "x2", "y1", "y2")] == ["40%", "70%", "150.0", "150.0"]
    assert [up.get(end) for end in ("x1", "x2", "y1", "y2")] == ["50%", "50%", "200.0", "0.0"]


def test_lines_columns_rules_and_ticks_are_drawn() -> None:
    line = Line(points=((0, 0), (5, 5), (10, 0)), colour="red", dashed=True)
    column = Column(x=5, low=0, high=5, colour="blue", told="a bar", width=2)
    root = drawn(Figure(panels=(panel(lines=(line,), columns=(column,), across=(2.5,), upright=(5,)),)))
    assert [(part.get("x1"), part.get("x2"), part.get("y2")) for part in of_class(root, "path")] == [
        ("0%", "50%", "100.0"),
        ("50%", "100%", "200.0"),
    ]
    bar = next(root.iter("rect"))
    assert [bar.get(key) for key in ("x", "width", "y", "height")] == ["40%", "20%", "100.0", "100.0"]
    across, upright = of_class(root, "rule")
    assert across.get("y1") == "150.0" and upright.get("x1") == "50%"
    assert [text.text for text in root.iter("text")] == ["0", "5", "0", "5"]


def test_names_of_marks_that_lie_together_stand_apart() -> None:
    marks = tuple(Mark(x=5, y=5, told=str(i), colour="red", name=str(i)) for i in range(4))
    places = [(t.get("x"), t.get("y")) for t in of_class(drawn(Figure(panels=(panel(marks=marks),))), "name")]
    assert len(set(places)) == 4


def test_every_shape_and_fill_looks_its_own_way() -> None:
    keys = [
        Key(text="a", colour="red", shape=shape, fill=fill)
        for shape in SHAPES
        for fill in ("solid", "hollow", "crossed")
    ]  # type: ignore[arg-type]
    entries = drawn(Figure(panels=(), keys=tuple(keys))).iter("li")
    looks = {tuple((path.get("d"), path.get("fill")) for path in entry.iter("path")) for entry in entries}
    assert len(looks) == 3 * len(SHAPES)


def test_bars_start_at_zero_and_share_a_column_s_room() -> None:
    change = Bars(
        title="change", values=(-1.0, 3.0, None), texts=("−1", "+3", "none"), ranges=((-1.0, 0.0), None, None)
    )
    table = BarTable(head="step", names=("a", "b", "c"), colours=("red", "blue", "red"), columns=(change,))
    root = fromstring(str(draw_bars(table)))
    bars = [(bar.get("x"), bar.get("width"), bar.get("fill")) for bar in root.iter("rect")]
    assert bars == [("0%", "25%", "red"), ("25%", "75%", "blue")]
    assert [line.get("x1") for line in of_class(root, "zero")] == ["25%", "25%"]
    (interval,) = of_class(root, "whisker")
    assert (interval.get("x1"), interval.get("x2")) == ("0%", "25%")
    assert [cell.findtext("span") for cell in root.iter("td")] == ["−1", "+3", "none"]


def test_names_cannot_become_markup() -> None:
    wicked = '"><script>alert(1)</script>'
    mark = Mark(x=1, y=1, told=wicked, colour="red", name=wicked, group=wicked)
    page = str(
        draw_figure(Figure(panels=(panel(label=wicked, marks=(mark,)),), keys=(Key(text=wicked, colour="red"),)))
    )
    table = BarTable(
        head=wicked, names=(wicked,), colours=("red",), columns=(Bars(title=wicked, values=(1.0,), texts=(wicked,)),)
    )
    assert "<script" not in page + str(draw_bars(table))


# charts kept as Plotly's JSON


def test_lying_bars_are_read_from_the_top_down() -> None:
    trace = {"type": "bar", "orientation": "h", "y": ["last", "first"], "x": [1, 2.5], "hovertext": ["l<br>x", "f"]}
    figure = {
        "data": [trace | {"marker": {"color": ["#111111", "#222222"]}}],
        "layout": {"xaxis": {"title": {"text": "nats"}}},
    }
    found = read_figure(figure, "t")
    assert isinstance(found, BarTable)
    assert (found.names, found.colours, found.told) == (("first", "last"), ("#222222", "#111111"), ("f", "l\nx"))
    assert (found.columns[0].title, found.columns[0].values, found.columns[0].texts) == (
        "nats",
        (2.5, 1.0),
        ("2.50", "1"),
    )


def test_upright_bars_side_by_side_become_columns() -> None:
    traces = [
        {"type": "bar", "name": name, "x": ["a&lt;b", "c"], "y": [1, 2], "marker": {"color": "#0072b2"}}
        for name in "xy"
    ]
    found = read_figure({"data": traces, "layout": {"yaxis": {"title": {"text": "channels"}}}}, "t")
    assert isinstance(found, BarTable)
    assert found.names == ("a<b", "c") and [column.title for column in found.columns] == ["x: channels", "y: channels"]
    assert {column.colour for column in found.columns} == {"#0072b2"}


def test_curves_keep_their_points_names_and_dashes() -> None:
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": "one", "x": [0, 1], "y": [2, 4], "line": {"dash": "dot"}},
        {"mode": "markers", "name": "two", "x": [1], "y": [3], "hovertext": ["said"]},
    ]
    found = read_figure({"data": traces, "layout": {"xaxis": {"title": "width"}}}, "a title")
    assert isinstance(found, Figure)
    (only,) = found.panels
    assert (only.label, only.x_title) == ("a title", "width")
    assert only.lines == (Line(points=((0, 2), (1, 4)), colour="#0072b2", dashed=True),)
    assert [mark.told for mark in only.marks] == ["one: 0, 2", "one: 1, 4", "said"]
    assert [key.text for key in found.keys] == ["one", "two"]


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ({"data": [{"type": "heatmap", "z": [[1]]}]}, "type heatmap"),
        ({"data": [{"type": "bar"}, {"type": "scatter"}]}, "type bar, scatter"),
        ({"data": [{"type": "bar", "x": ["a"]}]}, "cannot be read"),
        ({"data": [{"type": "scatter", "x": [1, 2], "y": ["?"]}]}, "cannot be read"),
        ({"data": []}, "no traces"),
        ({}, "no traces"),
    ],
)
def test_what_cannot_be_drawn_is_said(figure: dict[str, Any], words: str) -> None:
    found = read_figure(figure, "t")
    assert isinstance(found, str) and words in found


def test_bars_of_one_quantity_share_one_scale_across_columns() -> None:
    """A layer cut from 64 channels to 16 has a bar of a quarter, though 16 is the most that any layer has left."""
    bars = [
        {"type": "bar", "name": name, "x": ["a", "b"], "y": values}
        for name, values in (("before", [64, 32]), ("after", [16, 8]))
    ]
    table = read_figure({"data": bars, "layout": {}}, "t")
    assert isinstance(table, BarTable) and table.one_scale
    widths = [bar.get("width") for bar in fromstring(str(draw_bars(table))).iter("rect")]
    assert widths == ["100%", "25%", "50%", "12.5%"]
    own = read_figure({"data": [bars[0], bars[1] | {"yaxis": "y2"}], "layout": {}}, "t")
    assert isinstance(own, BarTable) and not own.one_scale
