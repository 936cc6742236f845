"""What a run came to, in one verdict and one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from edgewise.measure.values import Latency
from edgewise.report import numbers
from edgewise.report.document import Report
from edgewise.report.rows import Row, Verdict

SYMBOLS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "not-checked": "–"}
WORDS: dict[Verdict, str] = {"pass": "pass", "fail": "fail", "not-checked": "not checked"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The verdict on the whole run and what to say about it."""

    verdict: Verdict
    """``fail`` where any row failed or the run was stopped, ``not-checked`` where no file passed, or where files were asked
    for and there is none yet; of a run that is to write none, where no row passed; else ``pass``."""
    title: str
    best: str
    """What stopped the run; else about the smallest file that passed, empty where none did."""


def summarize(report: Report) -> Summary:
    """The verdict, its words and the file to take, computed from the rows."""
    counts = Counter(row.verdict for row in report.rows)
    if report.stopped:
        done = f"after {_count_words(len(report.rows), 'step')}" if report.rows else "before its first step was done"
        return Summary(verdict="fail", title=f"The run stopped {done}", best=_sentence(report.stopped))
    if not counts["fail"] and report.recipe.get("targets") and not any(row.step == "artifact" for row in report.rows):
        passing = f": {_checks_phrase(counts['pass'])} passed" if counts["pass"] else ""
        return Summary(verdict="not-checked", title=f"Not finished, no file yet{passing}", best="")
    files = Counter(row.verdict for row in report.rows if row.step == "artifact")
    file_count = files["pass"] if files else counts["pass"]
    verdict: Verdict = "fail" if counts["fail"] else "pass" if file_count else "not-checked"
    passing = _checks_phrase(counts["pass"])
    title = {
        "fail": f"{counts['fail']} of {_checks_phrase(len(report.rows))} failed",
        "pass": f"{passing} passed" if counts["not-checked"] or counts["pass"] == 1 else f"All {passing} passed",
        "not-checked": f"No file passed: {passing} passed" if counts["pass"] else "Nothing was checked",
    }[verdict]
    if counts["not-checked"] and (counts["pass"] or verdict == "fail"):
        title += f", {counts['not-checked']} not checked"
    return Summary(verdict=verdict, title=title, best=_best_file(report.rows))


def _checks_phrase(count: int) -> str:
    return _count_words(count, "check")


def _count_words(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """The row everything is compared with; None before it was measured."""
    return next((row for row in rows if row.step == "baseline"), None)


def row_labels(rows: Sequence[Row]) -> list[str]:
    """One short name a row: a step's own, a file's target and precision; numbered where a name comes back."""
    counts: Counter[str] = Counter()
    names = []
    for name in map(_label, rows):
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def target_groups(rows: Sequence[Row]) -> list[str]:
    """For each row the group it is shown or hidden with: ``steps``, or one for each target in its order."""
    names = list(dict.fromkeys(row.target for row in rows if row.target is not None))
    return ["steps" if row.target is None else f"target-{names.index(row.target)}" for row in rows]


def shown_groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each group of ``target_groups`` with what a reader calls it, in the order of the rows."""
    pairs = zip(target_groups(rows), rows, strict=True)
    return list({group: row.target or "steps" for group, row in pairs}.items())


@dataclass(frozen=True, kw_only=True)
class OpenPoint:
    """A row that keeps the run from being a pass, and why."""

    number: int
    """Of the row, from 1."""
    name: str
    verdict: Verdict
    reason: str


def open_points(rows: Sequence[Row]) -> list[OpenPoint]:
    """What failed, then what could not be decided, files before steps, without steps that a later step is judged for."""
    points = [
        OpenPoint(number=number, name=name, verdict=row.verdict, reason=row.reason)
        for number, (row, name, later) in enumerate(zip(rows, row_labels(rows), (*rows[1:], None), strict=False), 1)
        if row.verdict != "pass" and not _judged_later(row, later)
    ]
    return sorted(points, key=lambda point: (point.verdict != "fail", rows[point.number - 1].target is None))


def _judged_later(row: Row, later: Row | None) -> bool:
    """Whether the row's own verdict was never asked for: a fine-tune, or the training after calibration, follows."""
    follower = later.step if later is not None and later.target is None else None
    return row.verdict == "not-checked" and (
        follower == "finetune" or (row.step == "calibrate" and follower == "quantize")
    )


def reference_times(rows: Sequence[Row]) -> str:
    """Each runtime's own time for the baseline, from the run that gave the first of its ratios; empty without any."""
    times: dict[str, str] = {}
    for row in rows:
        if (latency := row.latency) and row.step == "baseline":
            times[latency.on] = f"{latency.on} {numbers.significant(latency.p50_ms)} ms"
    return ", ".join(times.values())


def timing_note(rows: Sequence[Row]) -> str:
    """How the rows' latencies were taken; empty where none has one."""
    latencies = [row.latency for row in rows if row.latency]
    if not latencies:
        return ""
    steps = sorted({row.latency.on for row in rows if row.latency and row.target is None})
    batches, threads = ({str(entry) for entry in map(attrgetter(name), latencies)} for name in ("batch", "threads"))
    text = f"Time: median of one call, batch {'/'.join(sorted(batches))}, threads {'/'.join(sorted(threads))}; "
    text += f"ratio: against the baseline in the same run{_baselines(latencies)}, below 1 is faster. "
    return text + (f"Steps ran in {', '.join(steps)}, each file in its own runtime." if steps else "")


_STEADY = 1.05
"""Up to which the baseline's times in several runs count as one."""


def _baselines(timed: Sequence[Latency]) -> str:
    """How far the baseline's own time went in those runs, on each runtime where it was not steady."""
    times: dict[str, list[float]] = {}
    for latency in timed:
        if latency.baseline_ms is not None:
            times.setdefault(latency.on, []).append(latency.baseline_ms)
    texts = [
        f"{numbers.significant(min(each))} to {numbers.significant(max(each))} ms on {on}"
        for on, each in times.items()
        if max(each) > _STEADY * min(each)
    ]
    return f", where it took {', '.join(texts)}" if texts else ""


def estimate_lines(rows: Sequence[Row]) -> list[str]:
    """What vendors' models predict for files that no machine at hand can time; one line a file, marked as estimates."""
    names = zip(rows, row_labels(rows), strict=True)
    return [
        f"{name}: estimated, not measured: {_estimate_text(e)}"
        for row, name in names
        if (e := row.facts.get("estimate"))
    ]


def _estimate_text(estimate: Mapping[str, Any]) -> str:
    cost = f"{numbers.significant(estimate['ms'])} ms at {estimate['clock_hz'] / 1e6:.0f} MHz, {estimate['cycles']:,} cycles"
    memory = f"{numbers.size(estimate['sram_bytes'])} SRAM, {numbers.size(estimate['flash_bytes'])} flash"
    return f"{cost}, {memory} ({estimate['source']})"


def coverage_note(rows: Sequence[Row]) -> str:
    """Which share of each file's MACs its backend takes; empty where no target tells."""
    entries = [(row, row.facts["coverage"]) for row in rows if row.target and row.facts.get("coverage")]
    shares = ", ".join(f"{_label(row)} {1 - entry['undelegated_share']:.1%}" for row, entry in entries)
    return f"MACs that the backend or, in an int8 file, int8 kernels compute: {shares}." if shares else ""


def _label(row: Row) -> str:
    if row.step != "artifact":
        return row.label
    return " ".join(part for part in (row.target or row.name, row.precision) if part)


def _best_file(rows: Sequence[Row]) -> str:
    passing = [row for row in rows if row.step == "artifact" and row.verdict == "pass" and row.bytes is not None]
    if not passing:
        return ""
    row = min(passing, key=lambda entry: entry.bytes or 0)
    parts = [numbers.size(row.bytes)]
    if row.accuracy:
        parts.append(f"top-1 {numbers.percent(row.accuracy.top1)} % ({_change_text(row.accuracy.vs_baseline.delta)})")
    if row.latency:
        parts.append(f"{numbers.ratio(row.latency.ratio_to_baseline)} the baseline's time on {row.latency.on}")
    first = baseline_row(rows)
    if first and first.bytes and row.bytes:
        parts[0] += f" where the baseline takes {numbers.size(first.bytes)}"
    return f"Smallest file that passed: {_label(row)}, {', '.join(parts)}."


def _change_text(delta: float) -> str:
    text = numbers.points(delta)
    return "level with the baseline" if text == "0.00" else f"{text} points"
