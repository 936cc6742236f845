"""The command line: ``python -m edgewise.studies.arm64 FILE ... --data D``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.commands.console import FAILED, PASSED, run_guarded

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.studies.arm64.check import OnMachine


CPUS = ("cortex-a53", "cortex-a76")
"""One without the integer dot product (Raspberry Pi 3) and one with it (Raspberry Pi 5): other kernels run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, as ``python -m edgewise`` has them."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.arm64",
        description="Runs written ONNX files on an emulated 64-bit Arm processor and holds them against this machine.",
        epilog="Needs root, debootstrap and qemu-user-static. Exit status as python -m edgewise.",
    )
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="FILE", help="an .onnx file beside its card")
    parser.add_argument(
        "--data", required=True, metavar="D", help="the data set it was verified on: reader or reader:PATH"
    )
    parser.add_argument("--images", type=int, metavar="N", help="the first N test images (default: all)")
    parser.add_argument("--cpu", action="append", metavar="C", help=f"as qemu calls it (default: {' and '.join(CPUS)})")
    parser.add_argument(
        "--root", type=Path, default=Path("runs/arm64-root"), metavar="DIR", help="where the Arm system is kept"
    )
    parser.add_argument("--mirror", metavar="URL", help="of Debian's packages")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write that document there")
    return parser


def _run_study(options: argparse.Namespace) -> int:
    from edgewise.errors import RequestError
    from edgewise.report.watch import Watch
    from edgewise.studies.arm64 import root
    from edgewise.studies.arm64.check import check_files

    if options.images is not None and options.images < 1:
        raise RequestError(f"--images must be at least 1, found {options.images}")
    root.check()
    watch = Watch()
    system = root.build(options.root, options.mirror or root.MIRROR, watch.say)
    rows = check_files(options.artifacts, options.data, options.images, options.cpu or CPUS, system, watch)
    document = {"versions": root.versions(), "emulator": root.emulator(), "rows": [row.to_json() for row in rows]}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    if options.out is not None:
        from edgewise.store.whole import write_whole

        write_whole(options.out, text.encode())
    if options.json:
        print(text)
    else:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(_result_table(rows))
    return FAILED if any(row.verdict == "fail" for row in rows) else PASSED


def _result_table(rows: Sequence[OnMachine]) -> Table:
    from rich import box
    from rich.table import Table

    from edgewise.report.numbers import percent, significant

    table = Table(
        box=box.SIMPLE_HEAD, caption="Emulated times compare files with each other at most, never with a board."
    )
    for title in ("file", "machine", "top-1 %", "n", "same class %", "largest difference", "ms", "verdict"):
        table.add_column(title, justify="left" if title in ("file", "machine", "verdict") else "right")
    for row in rows:
        table.add_row(
            f"{Path(row.file).name} ({row.precision})",
            row.machine,
            percent(row.accuracy.top1),
            f"{row.accuracy.n:,}",
            percent(row.agreement.top1),
            significant(row.agreement.max_abs),
            significant(row.p50_ms) + (" emulated" if row.emulated else ""),
            row.verdict,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
