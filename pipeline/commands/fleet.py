"""``edgewise fleet``: a bundle on many devices at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.commands.console import add_command
from edgewise.commands.on_device import add_options, bench_fleet


def add_parser(commands: Any) -> None:
    """``fleet DEVICES.toml BUNDLE``."""
    parser = add_command(commands, "fleet", "a bundle on many devices at once", bench_fleet)
    parser.add_argument("devices", type=Path, metavar="DEVICES.toml", help="tables [devices.NAME] with an address each")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE.pyz", help="as edgewise bundle wrote it")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="devices at once (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    add_options(parser)
