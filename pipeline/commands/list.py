"""``edgewise list``: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json

KINDS = ("models", "data", "targets", "stages", "recipes")


def add_parser(commands: Any) -> None:
    """``list KIND``."""
    listing = add_command(commands, "list", "what there is to choose from", list_kind)
    listing.add_argument("kind", choices=KINDS)


def list_kind(options: argparse.Namespace) -> int:
    """Print every entry of one kind."""
    from edgewise.catalogue import listing

    found = listing(options.kind)
    if options.json:
        print_json({options.kind: found})
        return PASSED
    width = max(len(entry["name"]) for entry in found)
    for entry in found:
        print(f"{entry['name']:{width}}  {entry['summary']}")
        for what, why in entry.get("cannot", {}).items():
            print(f"{'':{width}}  cannot {what}: {why}")
    return PASSED
