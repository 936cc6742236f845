"""``edgewise run``: a recipe, from top to bottom."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.commands.console import PASSED, add_command, print_json, print_note
from edgewise.commands.on_nodes import run_on_nodes
from edgewise.commands.report import outcome_of, print_report
from edgewise.errors import EdgewiseError
from edgewise.stages.training.nodes import count_processes

if TYPE_CHECKING:
    from edgewise.report.watch import Watch


def add_parser(commands: Any) -> None:
    """``run [RECIPE]``."""
    run = add_command(commands, "run", "run a recipe: compress, quantize, export, verify", run_recipe)
    run.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a name from 'list recipes', or path/to/recipe.py:function; without one --model and --data are quantized",
    )
    run.add_argument(
        "--model",
        metavar="M",
        help="a name from 'list models', timm:NAME, torchvision:NAME, or path/to/net.py:function",
    )
    run.add_argument(
        "--weights",
        metavar="F",
        help="safetensors or a weights-only checkpoint (FILE#KEY for one set in it), or 'pretrained' for timm's and torchvision's own; skips training a baseline",
    )
    run.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH, for example cifar10:DIR")
    run.add_argument("--target", action="append", metavar="T", help="write for this target; repeat for several")
    run.add_argument(
        "--prune", type=float, metavar="S", help="prune to this share of the multiply-accumulates (0.5: half)"
    )
    run.add_argument("--epochs", type=int, metavar="N", help="of each fine-tuning, else of training with quantization")
    run.add_argument("--lr", type=float, metavar="R", help="learning rate of the same")
    run.add_argument("--max-drop", type=float, metavar="D", help="top-1 that may be lost (0.01: one percentage point)")
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
        choices=("normalised", "channels-last", "bytes"),
        help="what the files are fed: normalised floats [1, C, H, W] (default), the same as [1, H, W, C], as Android's code "
        "has them, or a camera's bytes [1, H, W, C], which they normalise themselves",
    )
    run.add_argument(
        "--mean",
        nargs="+",
        type=float,
        metavar="M",
        help="mean that the weights were trained with, 0 to 1, one a channel",
    )
    run.add_argument(
        "--std", nargs="+", type=float, metavar="S", help="deviation that they were trained with, likewise"
    )
    run.add_argument(
        "--expect-top1",
        type=float,
        metavar="SHARE",
        help="top-1 that the weights are known to reach on this data, 0.857 for example; a baseline below it ends the run",
    )
    run.add_argument("--softmax", action="store_true", default=None, help="the files answer with probabilities")
    run.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    run.add_argument("--dry-run", action="store_true", help="check everything, tell the plan and stop")
    run.add_argument(
        "--log", type=Path, metavar="FILE", help="also write what the run says, with the time, to this file"
    )
    run.add_argument(
        "--keep-going",
        action="store_true",
        help="go on behind a failed step: its files are written and marked as failed",
    )
    run.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the files with this private key (PEM, elliptic curve)"
    )
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="report and artifacts (default: runs/RECIPE, or runs/RECIPE-MODEL)"
    )


def run_recipe(options: argparse.Namespace) -> int:
    """Everything that the recipe asks for, then the report."""
    return run_on_nodes(options, _run_here) if count_processes() > 1 else _run_here(options)


def _run_here(options: argparse.Namespace) -> int:
    from edgewise.report.watch import Watch

    watch = Watch(quiet=False, log=options.log)
    try:
        return _run_watched(options, watch)
    finally:
        watch.close()


def _run_watched(options: argparse.Namespace, watch: Watch) -> int:
    from edgewise.commands import again
    from edgewise.commands.request import request_recipe, resolve_request

    _check_key(options)
    watch.begin("looking whether this has been run")
    if (kept := again.recall_finished(options)) is not None:
        watch.say(again.say_unchanged(kept))
        return _show_kept(kept.out, options)
    recipe = request_recipe(options, watch.begin)
    watch.begin("reading the files that the run rests on")
    survey = again.survey_request(options, recipe)
    job = resolve_request(options, recipe, watch.begin)
    from edgewise.run import run
    from edgewise.run.plan import make_plan

    watch.begin("measuring what a step takes here")
    plan = make_plan(job)
    watch.plan(plan.lines, plan.steps)
    for warning in plan.warnings:
        watch.warn(warning)
    if options.dry_run:
        for sentence in job.told:
            watch.detail(sentence)
        if options.json:
            print_json(plan.to_json())
        return PASSED
    try:
        report = run(job, watch, keep_going=options.keep_going)
    except EdgewiseError:
        _write_stopped(job.out)
        raise
    watch.close()
    _sign_files(report, job.out, options.sign)
    from edgewise.report.page import write_html

    page = write_html(report, job.out)
    again.remember_finished(survey, options, recipe, job, report.rows)
    print_report(report, options.json, page)
    return outcome_of(report)


def _write_stopped(out: Path) -> None:
    """The page of a run that an error ended: what was measured until then, and the error."""
    from edgewise.report.document import Report
    from edgewise.report.page import write_html

    with contextlib.suppress(EdgewiseError):  # of two errors the first is the one to tell
        report = Report.read(out)
        if report.stopped:
            print_note(f"what was measured until then: {write_html(report, out)}")


def _show_kept(out: Path, options: argparse.Namespace) -> int:
    """The report of a finished run once more."""
    from edgewise.report.document import Report

    report = Report.read(out)
    print_report(report, options.json, out / "report.html")
    return outcome_of(report)


def _check_key(options: argparse.Namespace) -> None:
    if options.sign is not None:
        from edgewise.verify import signature

        signature.check_key(options.sign, private=True)


def _sign_files(report: Any, out: Path, key: Path | None) -> None:
    if key is not None:
        from edgewise.verify import signature

        for artifact in report.artifacts:
            signature.sign(out / artifact.path, key)
