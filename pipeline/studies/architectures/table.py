"""The table of the journey: docs/architectures.md for people, docs/architectures.json for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise import models, targets
from edgewise.models._published import PUBLISHED
from edgewise.report import markdown
from edgewise.store.whole import write_whole
from edgewise.studies.architectures.cells import PRECISIONS, Cell, plan
from edgewise.studies.architectures.choice import describe_choices
from edgewise.studies.architectures.keys import cell_key
from edgewise.studies.architectures.results import Results
from edgewise.studies.architectures.together import is_current

Result = Mapping[str, Any]
Found = dict[tuple[str, str, str], Result]

_INTRODUCTION = """# Every architecture on every target

Written by `nox -s journey`, from measurements; nothing here is typed. Each architecture of the registry at its published
size, with weights of its own initialisation and batch norms that have seen photographs. `architectures.json` holds the
same with every figure.

- **error**: ‖a − b‖ / ‖b − mean(b)‖ between the file's logits and those of the PyTorch model it was made from (for int8
  the quantized graph), over the crops of two photographs that were evaluated; **top-1**: on how many of them the largest
  logit is the same.
- **drift**: the same distance between the int8 graph and the float network, after calibration on four images and no
  training. The weights are untrained, so that it says how coarse the grid is and nothing of accuracy: an untrained deep
  network magnifies every rounding, and a file whose integers round once otherwise moves nearly as far (LOG.md).
- **outside**: operators that the target's accelerated backend left to something slower.
- **islands**: operators of the int8 graph that read or give floats. One that stands alone between a dequantization and a
  quantization is not among them, though a target without an integer kernel for it computes it in float too; where the
  target tells (ONNX, Core ML), it is named under outside.
- **time**: of one image on one thread, as a ratio to the float ONNX file in ONNX Runtime, interleaved, with its 95 %
  interval.
- † measured with an earlier version of the code that writes the file. – not run.
"""


def write(results: Results, folder: Path) -> list[Path]:
    """Write both files into ``folder`` and return their paths."""
    names = [name for name in targets.names() if any(results.folder.glob(f"*.{name}.*.json"))]
    results_by_cell = _collect_results(results, plan((), names, PRECISIONS))
    text, document = folder / "architectures.md", folder / "architectures.json"
    costs = {name: results.costs(name) or {} for name in models.names()}
    together = {name: kept for name in models.names() if (kept := results.together(name))}
    current = {name: is_current(name, kept) for name, kept in together.items()}
    write_whole(text, _markdown(results_by_cell, names, costs, describe_choices(together, current)).encode())
    content = _json_document(results_by_cell, costs, together)
    write_whole(document, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode())
    return [text, document]


def _collect_results(results: Results, cells: Iterable[Cell]) -> Found:
    collection: Found = {}
    for cell in cells:
        result = results.read(cell)
        if result is not None:
            current = {"current": _is_current(result, cell)}
            collection[cell.model, cell.target, cell.precision] = {**result, **current}
    return collection


def _is_current(result: Result, cell: Cell) -> bool:
    try:
        return bool(result.get("key") == cell_key(cell))
    except targets.MissingBackend:
        return True  # measured elsewhere; nothing here can tell


def _json_document(results: Found, costs: Mapping[str, Result], together: Mapping[str, Result]) -> dict[str, Any]:
    sizes = [{"model": name, **costs[name], "published": _published_figures(name)} for name in costs]
    rows = [
        {"model": model, "target": target, "precision": precision}
        | {k: v for k, v in result.items() if k not in ("facts", "grid")}
        for (model, target, precision), result in results.items()
    ]
    comparisons = [{"model": name, **kept} for name, kept in together.items()]
    return {"schema": 1, "models": sizes, "files": rows, "together": comparisons}


def _published_figures(name: str) -> dict[str, Any] | None:
    return asdict(PUBLISHED[name]) if name in PUBLISHED else None


def _markdown(results: Found, wanted: Sequence[str], costs: Mapping[str, Result], choices: str) -> str:
    parts = [_INTRODUCTION, _sizes(costs), *([choices] if choices else [])]
    parts += [_of_target(results, target) for target in wanted]
    parts.append(_rest_note(results, wanted))
    return "\n".join(parts)


def _titled_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([f"## {title}", "", *markdown.markdown_table(head, rows), ""])


def _sizes(costs: Mapping[str, Result]) -> str:
    rows = [[name, *_size_columns(name, cost)] for name, cost in costs.items()]
    head = ["architecture", "input", "parameters", "published", "MACs", "published", "by"]
    return _titled_table("Parameters and multiply-accumulates", head, rows)


def _size_columns(name: str, measured: Result) -> list[str]:
    figures = PUBLISHED.get(name)
    macs = figures.macs if figures else None
    theirs = "–" if figures is None else f"{figures.params:,}"
    published_cells = ["–", "–"]
    if figures is not None and macs is not None:
        published_cells = [_amount(macs), figures.source + (f", at {figures.side}" if figures.side else "")]
    if "macs" not in measured:
        return ["–", measured.get("failed", "–"), theirs, "–", *published_cells]
    params, file_params = measured["params"], measured["deployed"]
    own = f"{params:,}" + (f" ({file_params:,} deployed)" if file_params != params else "")
    return ["×".join(map(str, measured["input_shape"])), own, theirs, _amount(measured["macs"]), *published_cells]


def _of_target(results: Found, target: str) -> str:
    head = ["architecture"]
    head += ["float error, top-1", "outside", "size", "time"]
    head += ["int8 error, top-1", "drift", "outside", "islands", "size", "time"]
    run = [name for name in models.names() if any((name, target, precision) in results for precision in PRECISIONS)]
    rows = [[name, *_columns(results, name, target)] for name in run]
    grades = Counter(r["grade"] for (_, t, _), r in results.items() if t == target and "grade" in r)
    grade = ", ".join(f"{grade} ({count} files)" for grade, count in grades.items()) or "nothing was run"
    missing = len(models.names()) - len(run)
    return _titled_table(f"{target}: {grade}", head, rows) + (
        f"\n{missing} other architectures: not run.\n" if missing else ""
    )


def _columns(results: Found, name: str, target: str) -> list[str]:
    floating, int8 = (results.get((name, target, precision)) for precision in PRECISIONS)
    return [*_cells(floating, 4, _float_columns), *_cells(int8, 6, _int8_columns)]


def why_unmeasured(result: Mapping[str, Any]) -> str | None:
    """Why a result holds no measurement: ``failed`` or ``cannot`` and the reason; None for one that holds it."""
    return next((f"{word}: {result[word]}" for word in ("failed", "cannot") if word in result), None)


def _cells(result: Result | None, width: int, columns: Any) -> list[str]:
    if result is None:
        return ["–"] * width
    if reason := why_unmeasured(result):
        return [markdown.escape_cell(reason), *[""] * (width - 1)]
    cells: list[str] = columns(result)
    return cells if result["current"] else [f"{cells[0]} †", *cells[1:]]


def _float_columns(result: Result) -> list[str]:
    return [error_of(result), _counts_text(result["undelegated"]), size_of(result), _time_text(result)]


def _int8_columns(result: Result) -> list[str]:
    drift = f"{100 * result['drift']['error']:.2g} %"
    outside, islands = _counts_text(result["undelegated"]), _counts_text(result["islands"])
    return [error_of(result), drift, outside, islands, size_of(result), _time_text(result)]


def error_of(result: Result) -> str:
    """``0.01 %, 8/8``: error of the logits, and images with the same largest one."""
    figures = result["agreement"]
    return "not run" if figures is None else f"{100 * figures['error']:.2g} %, {figures['same']}/{figures['images']}"


def size_of(result: Result) -> str:
    """Megabytes of the file."""
    return f"{result['bytes'] / 1e6:.3g} MB"


def ratio_of(result: Result) -> str:
    """Time relative to the float ONNX file."""
    return f"{result['latency']['ratio']:.2f}×" if result["latency"] else "–"


def _time_text(result: Result) -> str:
    if not result["latency"]:
        return "–"
    low, high = result["latency"]["ci95"]
    interval = "" if low == high else f" ({low:.2f}–{high:.2f})"
    return f"{ratio_of(result)}{interval}, {result['latency']['p50_ms']:.3g} ms"


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {markdown.escape_cell(name)}" for name, count in counts.items()) or "0"


def _amount(macs: float) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "G"), (1e6, "M")) if macs >= unit), (1e3, "k"))
    return f"{macs / unit:.4g} {name}"


def _rest_note(results: Found, wanted: Sequence[str]) -> str:
    """What was not measured, and where the rest was."""
    total = len(models.names()) * len(PRECISIONS)
    lines = ["## What was run", ""]
    for target in targets.names():
        count = sum(1 for _, name, _ in results if name == target)
        lines.append(f"- {target}: {count} of {total} files" if target in wanted else f"- {target}: not run")
    machines = Counter(result["machine"] for result in results.values() if "machine" in result)
    lines += [f"- on {name}: {count} files" for name, count in machines.items()]
    return "\n".join([*lines, ""])
