"""Which runtime to choose on a machine: the table of the int8 files that were timed side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgewise.report import markdown

ALIKE = 1.25
"""A file counts as accurate as another whose distance from the float network is so many times smaller at most."""

_INTRODUCTION = f"""## int8 in every runtime, side by side

Every runtime's int8 file of one architecture, and the float ONNX file, called in turn in the same rounds, one image on one
thread: each file's time as a share of float ONNX's, with its 95 % interval, and its distance from the float network (‖a − b‖ /
‖b − mean(b)‖ over the logits). Weights are untrained, so that no accuracy can be equal; what counts as equally accurate is a
file whose distance is at most {ALIKE:g} times the smallest. **Choose** names the fastest of those, and whatever cannot be told
apart from it. † an earlier version of the code.
"""


def describe_choices(comparisons: Mapping[str, Mapping[str, Any]], current: Mapping[str, bool]) -> str:
    """The section; empty where nothing was compared. ``current``: whether a comparison is one of the present code."""
    shown = {name: kept for name, kept in comparisons.items() if kept.get("files") or kept.get("failed")}
    if not shown:
        return ""
    runtimes = list(dict.fromkeys(target for kept in shown.values() for target in kept.get("files", {})))
    rows = [[name + ("" if current[name] else " †"), *_row(kept, runtimes)] for name, kept in shown.items()]
    wins = Counter(target for kept in shown.values() for target in choose_runtimes(kept))
    table = markdown.markdown_table(["architecture", "float ONNX", *runtimes, "choose"], rows)
    total = len([kept for kept in shown.values() if kept.get("files")])
    counts = ", ".join(f"{target} {wins[target]}" for target in runtimes)
    machines = ", ".join(dict.fromkeys(str(kept["machine"]) for kept in shown.values() if "machine" in kept))
    return "\n".join([_INTRODUCTION, *table, "", f"Chosen, of {total} architectures: {counts}. On {machines}.", ""])


def choose_runtimes(comparison: Mapping[str, Any]) -> list[str]:
    """The fastest of the files that are equally near to float, and those whose intervals overlap its own."""
    files = comparison.get("files") or {}
    if not files:
        return []
    nearest = min(file["distance"]["error"] for file in files.values())
    near = {name: file for name, file in files.items() if file["distance"]["error"] <= ALIKE * nearest}
    fastest = min(near.values(), key=lambda file: file["ratio"])
    return [name for name, file in near.items() if file["ci95"][0] <= fastest["ci95"][1]]


def _row(comparison: Mapping[str, Any], runtimes: list[str]) -> list[str]:
    if "failed" in comparison:
        return [markdown.escape_cell(f"failed: {comparison['failed']}"), *[""] * (len(runtimes) + 1)]
    files, refused = comparison["files"], comparison.get("refused", {})
    cells = [_cell(files[name]) if name in files else _absence(refused.get(name)) for name in runtimes]
    return [f"{comparison['float_ms']:.3g} ms", *cells, ", ".join(choose_runtimes(comparison))]


def _cell(file: Mapping[str, Any]) -> str:
    low, high = file["ci95"]
    return f"{file['ratio']:.2f}× ({low:.2f}–{high:.2f}), {100 * file['distance']['error']:.2g} %"


def _absence(reason: str | None) -> str:
    return "–" if reason is None else markdown.escape_cell(f"failed: {reason}")
