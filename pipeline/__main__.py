"""The command line: ``edgewise``, or ``python -m edgewise``.

Arguments are parsed first; torch and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from edgewise.commands import (
    analyze,
    bench,
    bundle,
    compare,
    completion,
    fleet,
    init,
    list,
    report,
    run,
    schema,
    search,
    store,
    verify,
)  # fmt: skip
from edgewise.commands.console import run_guarded, stop_when_terminated
from edgewise.errors import name_nearest

COMMANDS = (run, search, init, list, analyze, verify, bench, bundle, compare, fleet, report, store, schema, completion)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        _refuse_option(options.parser, unknown[0])
    if options.debug:
        return int(options.run(options))
    stop_when_terminated()
    return run_guarded(lambda: int(options.run(options)))


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"edgewise {version('edgewise')}")
        except PackageNotFoundError:  # run from its source, which carries no version of its own
            print("edgewise, not installed")
        parser.exit()


def _refuse_option(parser: argparse.ArgumentParser, unknown: str) -> NoReturn:
    """Leave with the usage of the command itself, and the option that was perhaps meant."""
    options = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    near = name_nearest(unknown.partition("=")[0], options) if unknown.startswith("-") else ""
    parser.error(f"unrecognized argument: {unknown}.{near}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgewise",
        description="Makes a vision network small and fast enough for a device, and proves that the file still works.",
        epilog="Exit status: 0 all gates passed; 1 a gate failed; 2 the request is wrong; 3 a backend is missing.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
