"""What a report says beside top-1: balanced accuracy, top-5, and the classes that are told worst or fell furthest."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgewise.measure.per_class import largest_falls
from edgewise.measure.values import Accuracy
from edgewise.report.document import Section
from edgewise.report.numbers import percent, points
from edgewise.report.rows import Row

LOWEST = 3
"""Classes that one line names."""
MOST = 40
"""Classes that the page's table holds."""


def summarize_classes(accuracy: Accuracy) -> str:
    """Balanced accuracy, top-5 and the lowest recalls in one line; empty where classes were not looked at."""
    if accuracy.balanced is None:
        return ""
    parts = [f"balanced accuracy {percent(accuracy.balanced)} % over {len(accuracy.recall):,} classes"]
    if accuracy.top5 is not None:
        parts.append(f"top-5 {percent(accuracy.top5)} %")
    if accuracy.calibration is not None:
        parts.append(f"calibration error {percent(accuracy.calibration.error)} %")
    lowest = sorted(accuracy.recall.items(), key=lambda entry: entry[1])[:LOWEST]
    parts.append("lowest recall: " + ", ".join(f"{name} {share:.0%}" for name, share in lowest))
    return "; ".join(parts)


def below_top1(accuracy: Accuracy) -> str:
    """The figures that stand under a row's top-1; empty where classes were not looked at."""
    if accuracy.balanced is None:
        return ""
    top5 = "" if accuracy.top5 is None else f", top-5 {percent(accuracy.top5)}"
    ece = "" if accuracy.calibration is None else f", ECE {percent(accuracy.calibration.error)}"
    return f"balanced {percent(accuracy.balanced)}{top5}{ece}"


def class_lines(named: Sequence[tuple[Row, str]]) -> list[str]:
    """For a terminal: the baseline's figures, and for each file the classes whose recall fell most from the baseline's."""
    first = next((row.accuracy for row, _ in named if row.step == "baseline"), None)
    if first is None or first.balanced is None:
        return []
    lines = [f"baseline: {summarize_classes(first)}"]
    for row, name in named:
        if row.step != "artifact" or row.accuracy is None or row.accuracy.balanced is None:
            continue
        falls = largest_falls(first.recall, row.accuracy.recall, LOWEST)
        falls_text = ", ".join(f"{label} {before:.0%} to {after:.0%}" for label, before, after in falls)
        change = points(row.accuracy.balanced - first.balanced)
        lines.append(
            f"{name}: balanced {percent(row.accuracy.balanced)} % ({change}); " + (falls_text or "no class fell")
        )
    return lines


def class_sections(named: Sequence[tuple[Row, str]]) -> list[Section]:
    """The page's table of recall by class: the baseline, the last step and every file, the class lowest anywhere first."""
    rows = [(row.accuracy.recall, name) for row, name in _rows_shown(named) if row.accuracy is not None]
    if not rows or not rows[0][0]:
        return []
    classes = sorted(rows[0][0], key=lambda label: (min(recall.get(label, 1.0) for recall, _ in rows), label))
    head = "".join(f"<th>{escape(name)}</th>" for _, name in rows)
    body = "".join(_class_line(label, [recall.get(label) for recall, _ in rows]) for label in classes[:MOST])
    paragraph = f"<p>{_count_words(len(classes), min(MOST, len(classes)))} Recall in %: the share of a class's test images that are "
    paragraph += "put into it.</p>"
    table = f"<table><thead><tr><th>class</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return [Section(title="Recall by class", html=paragraph + table)]


def _rows_shown(named: Sequence[tuple[Row, str]]) -> list[tuple[Row, str]]:
    balanced = [(row, name) for row, name in named if row.accuracy is not None and row.accuracy.balanced is not None]
    steps = [entry for entry in balanced if entry[0].step != "artifact"]
    return [*steps[:1], *steps[1:][-1:], *(entry for entry in balanced if entry[0].step == "artifact")]


def _class_line(label: str, recalls: Sequence[float | None]) -> str:
    cells = "".join(f"<td>{'–' if recall is None else percent(recall)}</td>" for recall in recalls)
    return f"<tr><td>{escape(label)}</td>{cells}</tr>"


def _count_words(classes: int, shown: int) -> str:
    return f"All {classes:,} classes." if shown == classes else f"The {shown} lowest of {classes:,} classes."
