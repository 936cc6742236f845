"""``edgewise completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from typing import Any

from edgewise.commands.console import PASSED, add_command

SHELLS = ("bash", "zsh", "tcsh")


def add_parser(commands: Any) -> None:
    """``completion SHELL``."""
    parser = add_command(
        commands, "completion", "a script that lets a shell complete commands and options", print_script
    )
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help="bash: edgewise completion bash > ~/.local/share/bash-completion/completions/edgewise",
    )
    parser.set_defaults(whole=commands)


def print_script(options: argparse.Namespace) -> int:
    """Print the script for one shell, by shtab."""
    import shtab

    whole = argparse.ArgumentParser(prog="edgewise")
    whole.add_argument("--version", action="store_true", help="show the version and exit")
    subcommands = whole.add_subparsers(dest="command", metavar="COMMAND")
    for name, parser in options.whole.choices.items():
        subcommands.add_parser(
            name, parents=[parser], add_help=False, description=parser.description, help=parser.description
        )
    print(shtab.complete(whole, options.shell))
    return PASSED
