"""``edgewise verify``: a written file, held against its card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgewise.commands.console import FAILED, PASSED, add_command, print_json, size_of
from edgewise.errors import RequestError
from edgewise.report.plain import escape_text


def add_parser(commands: Any) -> None:
    """``verify ARTIFACT``."""
    parser = add_command(commands, "verify", "re-check a written file in its runtime", verify)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH; default: golden images alone")
    parser.add_argument("--layers", action="store_true", help="hold it against its network layer by layer, too")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="its network, where the file was moved away from it"
    )
    parser.add_argument(
        "--key", type=Path, metavar="PUB", help="it has to be signed with this key's private half (PEM)"
    )
    parser.add_argument("--model", metavar="M", help="path/to/net.py:function that a network of your own was built by")
    parser.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="another size that the file accepts"
    )


def verify(options: argparse.Namespace) -> int:
    """Hold a file against its card, and with ``--layers`` against its network."""
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    from edgewise.report.watch import Watch
    from edgewise.verify import signature
    from edgewise.verify.recheck import recheck_file

    if options.layers and options.data is None:
        raise RequestError("--layers compares on images of a data set; name one with --data")
    if options.layers and options.input_size:
        raise RequestError(
            "--layers compares at the size the network was captured at; leave --input-size out, or ask for one of the two"
        )
    if options.key is not None:
        signature.check_key(options.key, private=False)
    result = recheck_file(
        options.artifact,
        options.data,
        Watch().track,
        size_of(options),
        checkpoint=options.checkpoint,
        key=options.key,
    )
    parity = inspect_layers(options) if options.layers and result.verdict != "fail" else None
    if options.json:
        print_json(result.to_json() | ({"layers": parity.to_json()} if parity else {}))
    else:
        print(escape_text(str(result)))
    passes = result.verdict == "pass" and (parity is None or parity.first is None)
    return PASSED if passes else FAILED


def inspect_layers(options: argparse.Namespace) -> Any:
    from edgewise.files.isolated import call_remotely
    from edgewise.verify.parity import make_inspector, parity_table

    with call_remotely(make_inspector, what=f"comparing the layers of {options.artifact.name}") as inspect:
        parity = inspect(options.artifact, options.data, options.checkpoint, options.model, options.key)
    if not options.json:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(parity_table(parity.layers))
        print(escape_text(parity.sentence))
    return parity
