"""``edgewise analyze``: a network layer by layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json, size_of
from edgewise.report.plain import escape_text


def add_parser(commands: Any) -> None:
    """``analyze MODEL``."""
    parser = add_command(commands, "analyze", "per-layer shapes, parameters, MACs, receptive field, memory", analyze)
    parser.add_argument("model", metavar="MODEL", help="a registered name, or path/to/net.py:function")
    parser.add_argument("--input-size", nargs=2, type=int, metavar=("H", "W"), help="default: the published size")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also write a self-contained HTML picture")


def analyze(options: argparse.Namespace) -> int:
    """Print the network's layers with what each costs."""
    from edgewise.measure.cost import layers, picture, show
    from edgewise.network import architecture
    from edgewise.network.architecture import Base

    spec = architecture.spec_of(options.model)
    shape = (spec.input_shape[0], *(size_of(options) or spec.input_shape[1:]))
    model = architecture.build(Base(options.model, spec.num_classes, spec.input_shape[0]))
    analysis = layers.analyze(model, shape, name=options.model)
    if options.picture is not None:
        picture.write_picture(analysis, options.picture)
    if options.json:
        print_json(show.to_json(analysis))
        return PASSED
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(show.layer_table(analysis))
    if options.picture is not None:
        print(escape_text(f"Picture: {options.picture}"))
    return PASSED
