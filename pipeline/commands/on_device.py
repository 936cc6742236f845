"""Bundles on devices: the options that ``bench --device`` and ``fleet`` share, and what both print."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands.console import FAILED, MISSING_BACKEND, PASSED, print_json, print_note
from edgewise.errors import RequestError

if TYPE_CHECKING:
    from edgewise.device.bench import Measurement, Request
    from edgewise.device.bundle import Bundle
    from edgewise.device.fleet import Outcome
    from edgewise.report.devices import DeviceRow


def add_options(parser: argparse._ActionsContainer) -> None:
    """How long and how to measure."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="128 calls and 10 seconds of each file (default)")
    mode.add_argument("--normal", action="store_true", help="1,024 calls and 60 seconds of each file")
    mode.add_argument("--sustained", type=float, metavar="MINUTES", help="all files in turn, minute by minute")
    mode.add_argument("--brief", type=float, metavar="SECONDS", help="so many seconds of each file, to try it out")
    parser.add_argument(
        "--pin", metavar="P", help="big, little, or the device's processors as 0,2-3 (default: the fastest)"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="these files alone; repeat for several")
    parser.add_argument(
        "--any-version", action="store_true", help="also in a runtime older than files were verified in"
    )
    parser.add_argument("--device-python", metavar="P", help="the device's interpreter (default: python3)")
    parser.add_argument("--device-folder", metavar="DIR", help="where on the device the bundle goes while it runs")
    parser.add_argument("--keep", action="store_true", help="leave the bundle and its result on the device")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds after which the measurement is ended")
    parser.add_argument("--web-runtime", type=Path, metavar="DIR", help="node_modules with onnxruntime-web, for web://")
    parser.add_argument("--ssh-options", metavar="O", help="for the ssh client, as '-F FILE -o KEY=VALUE'")


def request_of(options: argparse.Namespace, threads: int) -> Request:
    """How to measure. Raises RequestError for a time that is none."""
    from edgewise.device.bench import Request

    for name in ("sustained", "brief", "timeout"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e5:
            raise RequestError(f"--{name}: wanted more than 0, found {value:g}")
    if threads < 1:
        raise RequestError(f"--threads: wanted at least 1, found {threads}")
    return Request(
        mode=_mode_arguments(options),
        threads=threads,
        pin=options.pin,
        only=tuple(options.only or ()),
        any_version=options.any_version,
        python=options.device_python,
        folder=options.device_folder,
        keep=options.keep,
        timeout=options.timeout,
        ssh_options=tuple(shlex.split(options.ssh_options or "")),
        web_runtime=options.web_runtime,
    )


def _mode_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    for name in ("sustained", "brief"):
        if getattr(options, name) is not None:
            return f"--{name}", f"{getattr(options, name):g}"
    return ("--normal",) if options.normal else ("--quick",)


def bench_on_device(options: argparse.Namespace) -> int:
    """Measure one bundle on one device, and print its rows."""
    from edgewise.device import bench, bundle

    if len(options.artifacts) != 1:
        raise RequestError(
            f"--device measures one bundle, found {len(options.artifacts)} files: write one of a whole run"
        )
    bundle_file = bundle.read(options.artifacts[0])
    request = replace(request_of(options, options.threads), native=options.native)
    _check_names(request.only, [file.name for file in bundle_file.manifest.files])
    outcome = _measure_device(options, bundle_file, request)
    _print_rows(options.json, outcome.rows, {"device": outcome.device, "result": str(outcome.path)})
    _say_how_to_renew(outcome.path)
    return FAILED if bench.has_failures(outcome.rows) else PASSED


def _measure_device(options: argparse.Namespace, bundle_file: Bundle, request: Request) -> Measurement:
    from edgewise.device import bench, web

    name = options.name or options.device
    if options.device.startswith("web://"):
        return web.measure(bundle_file, options.device, request, print_note, name)
    link = bench.connect(options.device, request)
    try:
        return bench.measure(bundle_file, link, request, print_note, name)
    finally:
        link.close()


def _check_names(only: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RequestError(f"--only {unknown[0]}: the bundle holds {', '.join(known)}")


def bench_fleet(options: argparse.Namespace) -> int:
    """Measure one bundle on every device of a file, and print a table of all."""
    from edgewise.device import bundle, fleet

    entries = fleet.read(options.devices)
    bundle_file = bundle.read(options.bundle)
    for name, entry in entries.items():
        _check_names(entry.only, [file.name for file in bundle_file.manifest.files])
        print_note(f"{name}: {entry.address}")
    outcomes = fleet.measure(bundle_file, entries, request_of(options, options.threads), options.jobs, print_note)
    rows = [row for outcome in outcomes if outcome.measurement for row in outcome.measurement.rows]
    failures = {outcome.device: outcome.error for outcome in outcomes if outcome.error}
    _print_rows(options.json, rows, {"failures": failures})
    if not options.json:
        for name, error in failures.items():
            print(f"{name}: {error}")
    for outcome in outcomes:
        if outcome.measurement:
            _say_how_to_renew(outcome.measurement.path)
            break
    return _exit_status(outcomes, rows)


def _exit_status(outcomes: Sequence[Outcome], rows: Sequence[DeviceRow]) -> int:
    if all(outcome.missing for outcome in outcomes):
        return MISSING_BACKEND
    return FAILED if any(o.error for o in outcomes) or any(row.verdict == "fail" for row in rows) else PASSED


def _print_rows(as_json: bool, rows: Sequence[DeviceRow], facts: dict[str, Any]) -> None:
    if as_json:
        print_json({**facts, "rows": [row.to_json() for row in rows]})
        return
    from rich.console import Console

    from edgewise.report.terminal import device_table

    Console(highlight=False).print(device_table(rows))
    for row in rows:
        print(f"{row.device}, {row.file}: {row.reason}{f'; {row.time.note}' if row.time else ''}")


def _say_how_to_renew(result: Path) -> None:
    """Say how the report takes the result in, where it lies in a run's folder."""
    run = result.parents[2]
    if (run / "report.json").is_file():
        print_note(f"kept: {result}; in the report of the run with: edgewise report {run}")
