"""The command line: ``python -m pipeline``, or ``edgewise`` after an editable install.

Arguments are parsed first; torch and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PASSED, FAILED, WRONG_REQUEST, MISSING_BACKEND, INTERRUPTED = 0, 1, 2, 3, 130

_KINDS = ("models", "data", "targets", "stages", "recipes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    commands = {
        "run": _run, "list": _list, "analyze": _analyze, "verify": _verify, "bench": _bench, "report": _report,
    }  # fmt: skip
    if options.debug:
        return commands[options.command](options)
    return guarded(lambda: commands[options.command](options))


def guarded(work: Callable[[], int]) -> int:
    """What ``work`` returns, or for an expected error one line on standard error and the exit status that tells it."""
    try:
        return work()
    except KeyboardInterrupt:
        _say("interrupted: finished steps are kept, and the same command goes on from there")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        _say(f"error: {error}")
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an expected error; None for one that is ours to mend and deserves its traceback."""
    from calib_data import DataError
    from models import ModelError
    from pipeline.errors import EdgewiseError, RequestError
    from targets import MissingBackend, TargetError

    if isinstance(error, MissingBackend):
        return MISSING_BACKEND
    if isinstance(error, (RequestError, DataError, ModelError, TargetError)):
        return WRONG_REQUEST
    return FAILED if isinstance(error, EdgewiseError) else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgewise",
        description="Makes a vision network small and fast enough for a device, and proves that the file still works.",
        epilog="Exit status: 0 all gates passed; 1 a gate failed; 2 the request is wrong; 3 a backend is missing.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    listing = _command(commands, "list", "what there is to choose from")
    listing.add_argument("kind", choices=_KINDS)
    analyze = _command(commands, "analyze", "per-layer shapes, parameters, MACs, receptive field, memory")
    analyze.add_argument("model", metavar="MODEL", help="a registered name, or path/to/net.py:function")
    analyze.add_argument("--input-size", nargs=2, type=int, metavar=("H", "W"), help="default: the published size")
    analyze.add_argument("--picture", type=Path, metavar="FILE", help="also write a self-contained HTML picture")
    verify = _command(commands, "verify", "re-check a written file in its runtime")
    verify.add_argument("artifact", type=Path, metavar="ARTIFACT")
    verify.add_argument("--data", metavar="D", help="a data set: reader or reader:PATH; default: golden images alone")
    verify.add_argument("--layers", action="store_true", help="hold it against its network layer by layer, too")
    verify.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="its network, where the file was moved away from it"
    )
    verify.add_argument("--model", metavar="M", help="path/to/net.py:function that a network of your own was built by")
    verify.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="another size that the file accepts"
    )
    bench = _command(commands, "bench", "interleaved latency of files, side by side")
    bench.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    bench.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    bench.add_argument("--seconds", type=float, default=10.0, help="about how long to measure (default 10)")
    bench.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="a size that the files accept (default: judged at)"
    )
    bench.add_argument("--profile", action="store_true", help="time by operator instead, where the runtime tells")
    report = _command(commands, "report", "the report again, from report.json")
    report.add_argument("folder", type=Path, metavar="DIR")
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _add_run(commands: Any) -> None:
    run = _command(commands, "run", "run a recipe: compress, quantize, export, verify")
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
    run.add_argument("--out", type=Path, metavar="DIR", help="report and artifacts (default: runs/RECIPE)")


def _run(options: argparse.Namespace) -> int:
    from pipeline.quiet import quieten

    quieten()
    from pipeline.image_sizes import asked
    from pipeline.resolve import find_recipe, override, packaged, resolve

    changes = {key: getattr(options, key) for key in ("model", "weights", "data", "device", "runtime")}
    changes["targets"] = tuple(options.target) if options.target else None
    recipe = override(find_recipe(options.recipe), changes)
    recipe = packaged(
        _in_float(recipe) if options.float else recipe,
        asked(options.input_size, options.input_size_range),
        {"fed": options.feed, "softmax": options.softmax},
    )
    job = resolve(recipe, options.out)
    from pipeline.report import write_html
    from pipeline.run import run
    from pipeline.watch import Watch

    report = run(job, Watch(quiet=False))
    page = write_html(report, job.out)
    _show(report, options.json, page)
    return _outcome(report)


def _in_float(recipe: Any) -> Any:
    """The recipe without its quantization and the files that need it."""
    others = tuple(name for name in recipe.candidates if name != "int8")
    return dataclasses.replace(recipe, quantize=None, candidates=others)


def _outcome(report: Any) -> int:
    return FAILED if any(row.verdict == "fail" for row in report.rows) else PASSED


def _show(report: Any, as_json: bool, page: Path) -> None:
    if as_json:
        _print_json(report.to_json())
        return
    from rich.console import Console

    from pipeline.report import table

    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table(report, page))


def _list(options: argparse.Namespace) -> int:
    from pipeline.catalogue import listing

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


def _analyze(options: argparse.Namespace) -> int:
    from pipeline import analyze, architecture
    from pipeline.architecture import Base

    spec = architecture.spec_of(options.model)
    shape = spec.input_shape if options.input_size is None else (spec.input_shape[0], *options.input_size)
    model = architecture.build(Base(options.model, spec.num_classes, spec.input_shape[0]))
    found = analyze.analyze(model, shape, name=options.model)
    if options.picture is not None:
        analyze.write_picture(found, options.picture)
    if options.json:
        _print_json(analyze.to_json(found))
        return PASSED
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(analyze.table(found))
    if options.picture is not None:
        print(f"Picture: {options.picture}")
    return PASSED


def _verify(options: argparse.Namespace) -> int:
    from pipeline.quiet import quieten

    quieten()
    from pipeline.errors import RequestError
    from pipeline.recheck import recheck
    from pipeline.watch import Watch

    if options.layers and options.data is None:
        raise RequestError("--layers compares on images of a data set; name one with --data")
    if options.layers and options.input_size:
        raise RequestError(
            "--layers compares at the size the network was captured at; leave --input-size out, or ask for one of the two"
        )
    result = recheck(options.artifact, options.data, Watch().track, _size(options))
    inspected = _inspected(options) if options.layers else None
    if options.json:
        _print_json(result.to_json() | ({"layers": inspected.to_json()} if inspected else {}))
    else:
        print(result)
    failed = result.verdict == "fail" or (inspected is not None and inspected.first is not None)
    return FAILED if failed else PASSED


def _inspected(options: argparse.Namespace) -> Any:
    from pipeline.layers import inspect, table

    found = inspect(options.artifact, options.data, options.checkpoint, options.model)
    if not options.json:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table(found.layers))
        print(found.sentence)
    return found


def _size(options: argparse.Namespace) -> tuple[int, int] | None:
    return None if options.input_size is None else (options.input_size[0], options.input_size[1])


def _bench(options: argparse.Namespace) -> int:
    from pipeline.quiet import quieten

    quieten()
    from pipeline.compare import compare, table

    if options.profile:
        return _profile(options)
    found = compare(options.artifacts, options.threads, options.seconds, _size(options))
    if options.json:
        _print_json({"files": [entry.to_json() for entry in found]})
        return PASSED
    from rich.console import Console

    Console(highlight=False).print(table(found))
    return PASSED


def _profile(options: argparse.Namespace) -> int:
    from pipeline.compare import profiled

    found = profiled(options.artifacts, options.threads)
    if options.json:
        _print_json({"profiles": found})
        return PASSED
    for path, times in found.items():
        print(f"{path}: {sum(times.values()):.3f} ms in its operators")
        for operator, time in times.items():
            print(f"  {operator:24} {time:8.4f} ms  {time / sum(times.values()):6.1%}")
    return PASSED


def _report(options: argparse.Namespace) -> int:
    from pipeline.report import Report, write_html

    report = Report.read(options.folder)
    page = write_html(report, options.folder)
    _show(report, options.json, page)
    return _outcome(report)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
