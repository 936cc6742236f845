"""``edgewise init``: a recipe file to start from, written for a network and images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json, print_note
from edgewise.errors import RequestError


def add_parser(commands: Any) -> None:
    """``init --model M --data D``."""
    parser = add_command(commands, "init", "write a commented recipe for a network and images", write)
    parser.add_argument("--model", metavar="M", help="as for run: a name, or path/to/net.py:function")
    parser.add_argument("--data", metavar="D", help="as for run, for example imagefolder:DIR")
    parser.add_argument("--weights", metavar="F", help="trained weights; left out: a baseline will be trained")
    parser.add_argument("--target", action="append", metavar="T", help="write for this target; repeat for several")
    parser.add_argument(
        "--max-drop", type=float, metavar="D", help="top-1 that may be lost (0.01: one percentage point)"
    )
    parser.add_argument("--out", type=Path, default=Path("recipe.py"), metavar="FILE", help="default: recipe.py")


def write(options: argparse.Namespace) -> int:
    """Look at the network and the images as a run does, and write the recipe; nothing is trained."""
    if options.model is None or options.data is None:
        options.parser.error("wanted --model and --data")
    if options.out.exists():
        raise RequestError(f"{options.out} is there already; give another name with --out")
    if options.out.suffix != ".py" or not options.out.parent.is_dir():
        raise RequestError(f"--out: wanted a .py file in a folder that is there, found {options.out}")
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    print_note("Looking at the network and the images …")
    from edgewise.run.job import resolve_recipe
    from edgewise.run.request import override_fields
    from edgewise.run.shortcuts import Shortcuts, name_of, own_recipe, shorten_recipe
    from edgewise.run.starter import write_recipe
    from edgewise.store.whole import write_whole

    shortcuts = Shortcuts(max_drop=options.max_drop, epochs=None if options.weights else _EPOCHS)
    recipe = own_recipe(options.model, options.data, options.weights, shortcuts)
    recipe = shorten_recipe(recipe, Shortcuts(max_drop=options.max_drop))
    recipe = override_fields(recipe, {"targets": tuple(options.target) if options.target else None})
    function = name_of(options.model).lower()
    function = function if function.isidentifier() else f"recipe_{function}"
    write_whole(options.out, write_recipe(resolve_recipe(recipe), function, str(options.out)))
    command = f"edgewise run {options.out}:{function}"
    if options.json:
        print_json({"recipe": str(options.out), "function": function, "command": command})
        return PASSED
    print_note(f"Wrote {options.out}. Next, for the plan and an estimate of the time:")
    print(f"{command} --dry-run")
    return PASSED


_EPOCHS = 30
"""Of the baseline, where there are no weights."""
