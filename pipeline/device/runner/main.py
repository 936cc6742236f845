"""The bundle's own command line: ``python3 BUNDLE.pyz [--quick | --normal | --sustained MINUTES] [--out RESULT.json]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from . import FAILED, MISSING_RUNTIME, PASSED, WRONG_REQUEST

MODES: dict[str, dict[str, Any]] = {
    "quick": {"calls": 128, "seconds": 10.0, "blocks": 30},
    "normal": {"calls": 1024, "seconds": 60.0, "blocks": 30},
}
"""Least number of calls of each file and seconds for each, as MLPerf Mobile has them."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 BUNDLE.pyz",
        description="Measures the files of this bundle on this device: accuracy, agreement, time, memory.",
        epilog="Exit status: 0 measured; 1 a file could not be run; 2 the request is wrong; 3 no runtime is installed.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="128 calls and 10 seconds of each file (default)")
    mode.add_argument("--normal", action="store_true", help="1,024 calls and 60 seconds of each file")
    mode.add_argument("--sustained", type=float, metavar="MINUTES", help="all files in turn, minute by minute")
    mode.add_argument("--brief", type=float, metavar="SECONDS", help="so many seconds of each file, to try it out")
    parser.add_argument("--threads", type=int, default=1, help="of every runtime (default 1)")
    parser.add_argument("--pin", metavar="P", help="big, little, or processors as 0,2-3 (default: the fastest)")
    parser.add_argument("--only", action="append", metavar="NAME", help="these files alone; see --list")
    parser.add_argument(
        "--any-version", action="store_true", help="also in a runtime older than the files were verified in"
    )
    parser.add_argument("--list", action="store_true", help="name the files and stop")
    parser.add_argument(
        "--out", type=Path, default=Path("result.json"), metavar="FILE", help="the result (default: result.json)"
    )
    parser.add_argument("--progress", type=Path, metavar="FILE", help="go on from what is finished there")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Before NumPy is imported: its own library reads the environment once.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    try:
        import numpy  # noqa: F401
    except ImportError:
        line = "python3 -m pip install numpy and the files' runtime, for ONNX: onnxruntime"
        return _refuse(f"wanted numpy for this Python ({sys.executable}), found none: {line}", MISSING_RUNTIME)
    return _guarded(options)


def _guarded(options: argparse.Namespace) -> int:
    from .contents import BundleError, Contents
    from .runtimes import MissingRuntime
    from .session import Session

    try:
        contents = Contents(Path(sys.argv[0]).absolute())
        if options.list:
            print("\n".join(f"{file['name']}  {file['target']} {file['precision']}" for file in contents.files))
            return PASSED
        _check(options, [file["name"] for file in contents.files])
        return Session(contents, options, mode_of(options)).run()
    except MissingRuntime as error:
        return _refuse(error, MISSING_RUNTIME)
    except (BundleError, ValueError) as error:
        return _refuse(error, WRONG_REQUEST)
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename or options.out}", FAILED)
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command with the same --progress goes on from there", 130)


def _refuse(error: object, status: int) -> int:
    print(f"edgewise: error: {error}", file=sys.stderr)
    return status


def _check(options: argparse.Namespace, known: list[str]) -> None:
    if options.threads < 1:
        raise ValueError(f"--threads: wanted at least 1, found {options.threads}")
    for name in ("sustained", "brief"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e5:
            raise ValueError(f"--{name}: wanted more than 0, found {value:g}")
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: wanted one of {', '.join(known)}")


def mode_of(options: argparse.Namespace) -> dict[str, Any]:
    """Name, calls, seconds and blocks of what was asked for."""
    if options.sustained is not None:
        # Ten blocks a minute, so that a minute can be told from the next.
        blocks = max(2, round(10 * options.sustained))
        return {"name": "sustained", "calls": 1, "seconds": 60 * options.sustained, "blocks": blocks}
    if options.brief is not None:
        return {"name": "brief", "calls": 1, "seconds": options.brief, "blocks": 10}
    name = "normal" if options.normal else "quick"
    return {"name": name, **MODES[name]}
