"""``edgewise verify``: a written file, held against its card."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from edgewise.commands.console import FAILED, PASSED, _print_json, _size


def _verify(options: argparse.Namespace) -> int:
    from edgewise.library_noise import quieten

    quieten()
    from edgewise.errors import RequestError
    from edgewise.report.watch import Watch
    from edgewise.verify.recheck import recheck

    if options.layers and options.data is None:
        raise RequestError("--layers compares on images of a data set; name one with --data")
    if options.layers and options.input_size:
        raise RequestError(
            "--layers compares at the size the network was captured at; leave --input-size out, or ask for one of the two"
        )
    result = recheck(options.artifact, options.data, Watch().track, _size(options))
    inspected = _inspected(options) if options.layers else None
    if options.json:
        _print_json(result.to_json() | ({"layers": inspected.to_json()} if inspected else {}))
    else:
        print(result)
    failed = result.verdict == "fail" or (inspected is not None and inspected.first is not None)
    return FAILED if failed else PASSED


def _inspected(options: argparse.Namespace) -> Any:
    from edgewise.verify.parity import inspect, table

    found = inspect(options.artifact, options.data, options.checkpoint, options.model)
    if not options.json:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table(found.layers))
        print(found.sentence)
    return found
