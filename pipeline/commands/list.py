"""``edgewise list``: what there is to choose from."""

from __future__ import annotations

import argparse

from edgewise.commands.console import PASSED, _print_json

_KINDS = ("models", "data", "targets", "stages", "recipes")


def _list(options: argparse.Namespace) -> int:
    from edgewise.catalogue import listing

    found = listing(options.kind)
    if options.json:
        _print_json({options.kind: found})
        return PASSED
    width = max(len(entry["name"]) for entry in found)
    for entry in found:
        print(f"{entry['name']:{width}}  {entry['summary']}")
        for what, why in entry.get("cannot", {}).items():
            print(f"{'':{width}}  cannot {what}: {why}")
    return PASSED
