"""The command line: ``python -m edgewise``, or ``edgewise`` after an editable install.

Arguments are parsed first; torch and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgewise.commands.analyze import _analyze
from edgewise.commands.bench import _bench
from edgewise.commands.console import _command, guarded
from edgewise.commands.list import _KINDS, _list
from edgewise.commands.report import _report
from edgewise.commands.run import _add_run, _run
from edgewise.commands.verify import _verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    commands = {
        "run": _run, "list": _list, "analyze": _analyze, "verify": _verify, "bench": _bench, "report": _report,
    }  # fmt: skip
    if options.debug:
        return commands[options.command](options)
    return guarded(lambda: commands[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgewise",
        description="Makes a vision network small and fast enough for a device, and proves that the file still works.",
        epilog="Exit status: 0 all gates passed; 1 a gate failed; 2 the request is wrong; 3 a backend is missing.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    listing = _command(commands, "list", "what there is to choose from")
    listing.add_argument("kind", choices=_KINDS)
    analyze = _command(commands, "analyze", "per-layer shapes, parameters, MACs, receptive field, memory")
    analyze.add_argument("model", metavar="MODEL", help="a registered name, or path/to/net.py:function")
    analyze.add_argument("--input-size", nargs=2, type=int, metavar=("H", "W"), help="default: the published size")
    analyze.add_argument("--picture", type=Path, metavar="FILE", help="also write a self-contained HTML picture")
    verify = _command(commands, "verify", "re-check a written file in its runtime")
    verify.add_argument("artifact", type=Path, metavar="ARTIFACT")
    verify.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH; default: golden images alone")
    verify.add_argument("--layers", action="store_true", help="hold it against its network layer by layer, too")
    verify.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="its network, where the file was moved away from it"
    )
    verify.add_argument("--model", metavar="M", help="path/to/net.py:function that a network of your own was built by")
    verify.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="another size that the file accepts"
    )
    bench = _command(commands, "bench", "interleaved latency of files, side by side")
    bench.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    bench.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    bench.add_argument("--seconds", type=float, default=10.0, help="about how long to measure (default 10)")
    bench.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="a size that the files accept (default: judged at)"
    )
    bench.add_argument("--profile", action="store_true", help="time by operator instead, where the runtime tells")
    report = _command(commands, "report", "the report again, from report.json")
    report.add_argument("folder", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
