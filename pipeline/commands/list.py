"""``edgewise list``: what there is to choose from."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json

KINDS = ("models", "data", "targets", "stages", "recipes", "spaces", "fields")


def add_parser(commands: Any) -> None:
    """``list KIND [NAME]``."""
    listing = add_command(commands, "list", "what there is to choose from", list_kind)
    listing.add_argument("kind", choices=KINDS, help="fields: of a recipe, its limits and a training")
    listing.add_argument(
        "name", nargs="?", metavar="NAME", help="one of them, with its fields, their defaults and meaning"
    )


def list_kind(options: argparse.Namespace) -> int:
    """Print every entry of one kind, or one with all that it tells."""
    from edgewise.catalogue import find_entry, list_entries

    if options.name is not None:
        entry = find_entry(options.kind, options.name)
        print_json(entry) if options.json else print(describe_entry(entry))
        return PASSED
    listing_text = list_entries(options.kind)
    if options.json:
        print_json({options.kind: listing_text})
        return PASSED
    width = max(len(entry["name"]) for entry in listing_text)
    # A terminal would break lines within words; what reads a pipe wants a line each.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for entry in listing_text:
        print(textwrap.fill(f"{entry['name']:{width}}  {entry['summary']}", room, subsequent_indent=" " * (width + 2)))
        for what, why in entry.get("cannot", {}).items():
            print(f"{'':{width}}  cannot {what}: {why}")
    return PASSED


def describe_entry(entry: Mapping[str, Any]) -> str:
    """One entry in words: its fields with type, default and meaning; of a recipe what it sets."""
    lines = [f"{entry['name']}: {entry['summary']}"]
    for field in entry.get("fields", ()):
        default = "must be given" if field["default"] is None else f"= {field['default']}"
        lines.append(f"  {field['name']}: {field['type']} {default}")
        lines += textwrap.wrap(field["meaning"], 100, initial_indent="      ", subsequent_indent="      ")
    if "from" in entry:
        lines.append(f"  as {entry['from']}, but:")
    for name, value in entry.get("sets", {}).items():
        lines += textwrap.wrap(f"{name} = {value}", 100, initial_indent="  ", subsequent_indent="      ")
    lines += [f"  cannot {what}: {why}" for what, why in entry.get("cannot", {}).items()]
    return "\n".join(lines)
