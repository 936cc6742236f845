"""The command line: ``edgewise``, or ``python -m edgewise``.

Arguments are parsed first; torch and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edgewise.commands import analyze, bench, list, report, run, store, verify
from edgewise.commands.console import run_guarded, stop_when_terminated

COMMANDS = (run, list, analyze, verify, bench, report, store)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.debug:
        return int(options.run(options))
    stop_when_terminated()
    return run_guarded(lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgewise",
        description="Makes a vision network small and fast enough for a device, and proves that the file still works.",
        epilog="Exit status: 0 all gates passed; 1 a gate failed; 2 the request is wrong; 3 a backend is missing.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
