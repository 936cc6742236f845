"""``edgewise verify``: a written file, held against its card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json, size_of


def add_parser(commands: Any) -> None:
    """``verify ARTIFACT``."""
    parser = add_command(commands, "verify", "re-check a written file in its runtime", verify)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH; default: golden images alone")
    parser.add_argument("--layers", action="store_true", help="hold it against its network layer by layer, too")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="its network, where the file was moved away from it"
    )
    parser.add_argument("--model", metavar="M", help="path/to/net.py:function that a network of your own was built by")
    parser.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="another size that the file accepts"
    )


def verify(options: argparse.Namespace) -> int:
    """Hold a file against its card, and with ``--layers`` against its network."""
    from edgewise.library_noise import quieten

    quieten()
    from edgewise.errors import RequestError
    from edgewise.report.watch import Watch
    from edgewise.verify.recheck import recheck_file

    if options.layers and options.data is None:
        raise RequestError("--layers compares on images of a data set; name one with --data")
    if options.layers and options.input_size:
        raise RequestError(
            "--layers compares at the size the network was captured at; leave --input-size out, or ask for one of the two"
        )
    result = recheck_file(options.artifact, options.data, Watch().track, size_of(options))
    inspected = inspect_layers(options) if options.layers else None
    if options.json:
        print_json(result.to_json() | ({"layers": inspected.to_json()} if inspected else {}))
    else:
        print(result)
    failed = result.verdict == "fail" or (inspected is not None and inspected.first is not None)
    return FAILED if failed else PASSED


def inspect_layers(options: argparse.Namespace) -> Any:
    from edgewise.verify.parity import inspect, table

    found = inspect(options.artifact, options.data, options.checkpoint, options.model)
    if not options.json:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table(found.layers))
        print(found.sentence)
    return found
