"""What every command shares: exit statuses, expected errors, and what is printed on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

PASSED, FAILED, WRONG_REQUEST, MISSING_BACKEND, INTERRUPTED = 0, 1, 2, 3, 130


def run_guarded(work: Callable[[], int]) -> int:
    """What ``work`` returns, or for an expected error one line on standard error and the exit status that tells it."""
    try:
        return work()
    except KeyboardInterrupt:
        say("interrupted: finished steps are kept, and the same command goes on from there")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        say(f"error: {error}")
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an expected error; None for one that is ours to mend and deserves its traceback."""
    from edgewise.calib_data import DataError
    from edgewise.errors import EdgewiseError, RequestError
    from edgewise.models import ModelError
    from edgewise.targets import MissingBackend, TargetError

    if isinstance(error, MissingBackend):
        return MISSING_BACKEND
    if isinstance(error, (RequestError, DataError, ModelError, TargetError)):
        return WRONG_REQUEST
    return FAILED if isinstance(error, EdgewiseError) else None


def add_command(
    commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """The parser of a command that ``run`` does, with the options that every command has."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    command.set_defaults(run=run, parser=command)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def size_of(options: argparse.Namespace) -> tuple[int, int] | None:
    """Height and width from ``--input-size H W``; None where it is not given."""
    return None if options.input_size is None else (options.input_size[0], options.input_size[1])


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A line for the person, on standard error."""
    print(text, file=sys.stderr)
