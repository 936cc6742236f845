"""``edgewise bench``: latency of written files side by side, interleaved in one run; or a bundle on a device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands import on_device
from edgewise.commands.console import PASSED, add_command, print_json, size_of
from edgewise.report.plain import cell, printable

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.commands.side_by_side import Timing


def add_parser(commands: Any) -> None:
    """``bench ARTIFACT ...``."""
    parser = add_command(commands, "bench", "interleaved latency of files, side by side", bench)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to measure (default 10)")
    parser.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="a size that the files accept (default: judged at)"
    )
    parser.add_argument("--profile", action="store_true", help="time by operator instead, where the runtime tells")
    parser.add_argument(
        "--device", metavar="AT", help="measure a bundle on local, ssh://[user@]host[:port], adb://SERIAL or web://"
    )
    parser.add_argument("--name", metavar="NAME", help="what to call the device in the report (default: its address)")
    on_device.add_options(parser.add_argument_group("with --device"))


def bench(options: argparse.Namespace) -> int:
    """Print the files' times, or with ``--profile`` the operators' of each."""
    from edgewise.library_noise import quieten

    quieten()
    if options.device is not None:
        return on_device.bench_on_device(options)
    from edgewise.commands.side_by_side import compare

    if options.profile:
        return print_profile(options)
    found = compare(options.artifacts, options.threads, options.seconds, size_of(options))
    if options.json:
        print_json({"files": [entry.to_json() for entry in found]})
        return PASSED
    from rich.console import Console

    Console(highlight=False).print(table(found))
    return PASSED


def print_profile(options: argparse.Namespace) -> int:
    """Print where the time of each file goes, by operator."""
    from edgewise.commands.side_by_side import profile_files

    found = profile_files(options.artifacts, options.threads)
    if options.json:
        print_json({"profiles": found})
        return PASSED
    for path, times in found.items():
        print(f"{printable(path)}: {sum(times.values()):.3f} ms in its operators")
        for operator, time in times.items():
            print(f"  {operator:24} {time:8.4f} ms  {time / sum(times.values()):6.1%}")
    return PASSED


def table(timings: Sequence[Timing]) -> Table:
    """A Rich table, the first file as the measure of the others."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD)
    for title in ("file", "on", "threads", "p50 ms", "p90 ms", "ratio", "95 % interval", ""):
        shown.add_column(title, justify="left" if title in ("file", "on", "") else "right", no_wrap=title != "file")
    for entry in timings:
        low, high = entry.ci95
        shown.add_row(
            cell(entry.artifact if entry.trusted else f"{entry.artifact} (untrusted: no card)"),
            entry.target,
            str(entry.threads),
            f"{entry.p50_ms:.3g}",
            f"{entry.p90_ms:.3g}",
            f"{entry.ratio_to_first:.2f}",
            f"{low:.2f} to {high:.2f}",
            "" if entry is timings[0] else entry.speed,
        )
    if remarks := dict.fromkeys(f"{entry.artifact}: {remark}" for entry in timings for remark in entry.remarks):
        shown.caption = "\n".join(remarks)
    return shown
