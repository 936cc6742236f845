"""``edgewise bench``: latency of written files side by side, interleaved in one run; or a bundle on a device."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands import on_device
from edgewise.commands.console import PASSED, add_command, print_json, size_of
from edgewise.errors import RequestError
from edgewise.report.plain import escape_cell, escape_text

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.commands.side_by_side import Timing


def add_parser(commands: Any) -> None:
    """``bench ARTIFACT ...``."""
    parser = add_command(commands, "bench", "interleaved latency of files, side by side", bench)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="threads of every runtime, one count or several",
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="N", help="images of one call, one count or several"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="about how long to measure, for each of these (default 10)"
    )
    parser.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="a size that the files accept (default: judged at)"
    )
    parser.add_argument("--profile", action="store_true", help="time by operator instead, where the runtime tells")
    parser.add_argument(
        "--device", metavar="AT", help="measure a bundle on local, ssh://[user@]host[:port], adb://SERIAL or web://"
    )
    parser.add_argument("--name", metavar="NAME", help="what to call the device in the report (default: its address)")
    parser.add_argument(
        "--native",
        type=Path,
        metavar="PROGRAM",
        help="with --device: measure .pte files by this program, without Python",
    )
    on_device.add_options(parser.add_argument_group("with --device"))


def bench(options: argparse.Namespace) -> int:
    """Print the files' times, or with ``--profile`` the operators' of each."""
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    if options.device is not None or options.profile:
        options.threads = _single_count(options.threads, "--threads")
        _single_count(options.batch, "--batch")
    if options.device is not None:
        return on_device.bench_on_device(options)
    from edgewise.commands.side_by_side import compare_speed

    if options.profile:
        return print_profile(options)
    timings = compare_speed(options.artifacts, options.threads, options.seconds, size_of(options), options.batch)
    if options.json:
        print_json({"files": [entry.to_json() for entry in timings]})
        return PASSED
    from rich.console import Console

    console = Console(highlight=False)
    console.print(timing_table(timings, console.width))
    for line in speed_verdicts(timings):
        console.print(escape_cell(line))
    return PASSED


def _single_count(counts: Sequence[int], option: str) -> int:
    if len(counts) > 1:
        raise RequestError(f"{option} takes one count with --profile and --device, found {' '.join(map(str, counts))}")
    return counts[0]


def print_profile(options: argparse.Namespace) -> int:
    """Print where the time of each file goes, by operator."""
    from edgewise.commands.side_by_side import profile_files

    profiles = profile_files(options.artifacts, options.threads)
    if options.json:
        print_json({"profiles": profiles})
        return PASSED
    for path, times in profiles.items():
        print(f"{escape_text(path)}: {sum(times.values()):.3f} ms in its operators")
        for operator, time in times.items():
            print(f"  {operator:24} {time:8.4f} ms  {time / sum(times.values()):6.1%}")
    return PASSED


def timing_table(timings: Sequence[Timing], width: int = 80) -> Table:
    """A Rich table of at most ``width`` columns, the first file as the measure of the others."""
    from rich import box
    from rich.table import Table

    conditions = list(dict.fromkeys((entry.threads, entry.batch) for entry in timings))
    several, wide = conditions != [(1, 1)], width >= _WIDE
    room = max(_NARROWEST, width - (64 if wide else 56) - (20 if several else 0))
    names = distinct_names([entry.artifact for entry in timings], room)
    titles = ["file", "on", *(["threads", "batch", "img/s"] if several else []), "ms", *(["p90 ms"] if wide else [])]
    titles += ["ratio", "95 % interval", ""]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in ("file", "on", "") else "right", no_wrap=title != "file")
    for entry in timings:
        low, high = entry.ci95
        first = entry.artifact == timings[0].artifact
        load = [
            str(entry.threads),
            str(entry.batch),
            f"{entry.images_per_s:.3g}" if entry.images_per_s < 1000 else f"{entry.images_per_s:,.0f}",
        ]
        table.add_row(
            escape_cell(names[entry.artifact] + ("" if entry.trusted else " (untrusted: no card)")),
            entry.target,
            *(load if several else []),
            f"{entry.p50_ms:.3g}",
            *([f"{entry.p90_ms:.3g}"] if wide else []),
            f"{entry.ratio_to_first:.2f}",
            "" if first else f"{low:.2f} to {high:.2f}",
            "" if first else entry.speed,
            end_section=entry is not timings[-1]
            and _conditions_of(entry) != _conditions_of(timings[timings.index(entry) + 1]),
        )
    return table


_WIDE = 98
"""Columns from which the 90th percentile has room."""
_NARROWEST = 14
"""Columns that a file's name gets at least."""


def _conditions_of(entry: Timing) -> tuple[int, int]:
    return entry.threads, entry.batch


def speed_verdicts(timings: Sequence[Timing]) -> list[str]:
    """Which file is the fastest, or that it cannot be told, for each count of threads and images; then what disturbed."""
    names = distinct_names([entry.artifact for entry in timings], 60)
    lines = []
    for conditions in dict.fromkeys(map(_conditions_of, timings)):
        group = [entry for entry in timings if _conditions_of(entry) == conditions]
        best = [names[entry.artifact] for entry in group if entry.fastest]
        where = "" if conditions == (1, 1) else f" at threads {conditions[0]}, batch {conditions[1]}"
        if len(group) > 1:
            sentence = (
                f"Fastest{where}: {best[0]}."
                if len(best) == 1
                else f"Cannot tell which is fastest{where}: {', '.join(best)}."
            )
            lines.append(sentence)
    return [
        *lines,
        *shared_remarks([(names[e.artifact], remark) for e in timings for remark in e.remarks], len(names)),
        "ms: median of one call; ratio: to the first file in the same run, below 1 is faster.",
    ]


def shared_remarks(remarks: Sequence[tuple[str, str]], count: int) -> list[str]:
    """Remarks on files, (file, remark), each kind once: those that differ in their numbers alone with the least and the most.
    ``count``: how many files there are."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, remark in remarks:
        kinds.setdefault(_NUMBER.sub("#", remark), []).append((name, remark))
    lines = []
    for kind in kinds.values():
        files = list(dict.fromkeys(name for name, _ in kind))
        who = "all files" if len(files) == count > 1 else ", ".join(files)
        lines.append(f"{who}: {_with_spans([remark for _, remark in kind])}")
    return lines


_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?%?")


def _with_spans(alike: Sequence[str]) -> str:
    """Texts that differ in their numbers alone as one, ``12% to 40%`` where one has 12% and another 40%."""
    columns = iter(zip(*(_NUMBER.findall(text) for text in alike), strict=True))

    def span(_: re.Match[str]) -> str:
        numbers = sorted(next(columns), key=lambda number: float(number.rstrip("%")))
        return numbers[0] if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"

    return _NUMBER.sub(span, alike[0])


def distinct_names(paths: Sequence[str], width: int) -> dict[str, str]:
    """Short names of different paths that differ: without the folders that all share, what is still too long for ``width``
    columns cut where the names agree; numbered where no cut leaves a difference."""
    different = list(dict.fromkeys(paths))
    split = [Path(path).parts for path in different]
    prefix_length = 0
    while all(len(parts) > prefix_length + 1 and parts[prefix_length] == split[0][prefix_length] for parts in split):
        prefix_length += 1
    names = ["/".join(parts[prefix_length:]) for parts in split]
    return dict(zip(different, _shorten_names(names, width), strict=True))


def _shorten_names(names: Sequence[str], width: int) -> list[str]:
    """Names of at most ``width`` characters, as different as they were."""
    if max(map(len, names)) <= width:
        return list(names)
    for head in (0, *range(width // 2, width), *range(width // 2)):
        tail = width - 1 - head
        shortened = [name if len(name) <= width else f"{name[:head]}…{name[len(name) - tail :]}" for name in names]
        if len(set(shortened)) == len(names):
            return shortened
    return [f"{number} …{name[-(width - 3 - len(str(number))) :]}" for number, name in enumerate(names, 1)]
