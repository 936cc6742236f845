"""``edgewise run``: a recipe, from top to bottom."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from edgewise.commands.console import add_command
from edgewise.commands.report import outcome_of, show


def add_parser(commands: Any) -> None:
    """``run RECIPE``."""
    run = add_command(commands, "run", "run a recipe: compress, quantize, export, verify", run_recipe)
    run.add_argument("recipe", metavar="RECIPE", help="a name from 'list recipes', or path/to/recipe.py:function")
    run.add_argument("--model", metavar="M", help="a name from 'list models', or path/to/net.py:function")
    run.add_argument(
        "--weights", metavar="F", help="safetensors or a weights-only checkpoint; skips training a baseline"
    )
    run.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH, for example cifar10:DIR")
    run.add_argument("--target", action="append", metavar="T", help="write for this target; repeat for several")
    run.add_argument("--float", action="store_true", help="leave the quantization out: the files compute in float")
    run.add_argument("--runtime", metavar="T", help="the target whose milliseconds judge the float steps")
    run.add_argument(
        "--input-size",
        nargs=2,
        type=int,
        action="append",
        metavar=("H", "W"),
        help="resize the images to this height and width, train, judge and write for it; repeat for files that accept "
        "several sizes, of which the first is trained at",
    )
    run.add_argument(
        "--input-size-range",
        nargs=2,
        type=int,
        metavar=("LOW", "HIGH"),
        help="write files that accept every height and width from LOW to HIGH; trained at --input-size, else at the "
        "data's own size where that lies inside, else at LOW",
    )
    run.add_argument(
        "--feed",
        choices=("normalised", "bytes"),
        help="what the files are fed: normalised floats [1, C, H, W] (default), or a camera's bytes [1, H, W, C], which "
        "they normalise themselves",
    )
    run.add_argument("--softmax", action="store_true", default=None, help="the files answer with probabilities")
    run.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    run.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the files with this private key (PEM, elliptic curve)"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="report and artifacts (default: runs/RECIPE)")


def run_recipe(options: argparse.Namespace) -> int:
    """Everything that the recipe asks for, then the report."""
    from edgewise.library_noise import quieten

    quieten()
    from edgewise.catalogue import find_recipe
    from edgewise.run.job import resolve
    from edgewise.run.request import override_fields, sizes_from_arguments, with_packaging
    from edgewise.verify import signature

    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device", "runtime")}
    changes["targets"] = tuple(options.target) if options.target else None
    recipe = override_fields(find_recipe(options.recipe), changes)
    recipe = with_packaging(
        without_quantization(recipe) if options.float else recipe,
        sizes_from_arguments(options.input_size, options.input_size_range),
        {"fed": options.feed, "softmax": options.softmax},
    )
    if options.sign is not None:
        signature.check_key(options.sign, private=True)
    job = resolve(recipe, options.out)
    from edgewise.report.page import write_html
    from edgewise.report.watch import Watch
    from edgewise.run import run

    report = run(job, Watch(quiet=False))
    for artifact in report.artifacts if options.sign is not None else ():
        signature.sign(job.out / artifact.path, options.sign)
    page = write_html(report, job.out)
    show(report, options.json, page)
    return outcome_of(report)


def without_quantization(recipe: Any) -> Any:
    """The recipe without its quantization and the files that need it."""
    others = tuple(name for name in recipe.candidates if name != "int8")
    return dataclasses.replace(recipe, quantize=None, candidates=others)
