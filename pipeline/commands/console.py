"""What every command shares: exit statuses, expected errors, and what is printed on standard output."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable
from typing import Any

from edgewise.errors import RequestError
from edgewise.report.plain import escape_text

PASSED, FAILED, WRONG_REQUEST, MISSING_BACKEND, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

_THEIRS = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ENXIO,
    errno.EPERM, errno.EROFS,
)  # fmt: skip
"""What a path can be that somebody named; other errors of the system are ours to mend."""


class Terminated(BaseException):
    """Somebody asked this process to end."""


def stop_when_terminated() -> None:
    """Have a request to end (SIGTERM) end what is going on as an interruption does: workers stopped, nothing half-written."""
    import signal
    import threading

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # asked again, it is putting things away already
        raise Terminated

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        signal.signal(signal.SIGTERM, terminate)


def run_guarded(work: Callable[[], int]) -> int:
    """What ``work`` returns, or for an expected error a sentence on standard error and the exit status that tells it.

    Further lines of the sentence are set in: a line break in a path cannot make up an outcome of its own.
    """
    try:
        return work()
    except (KeyboardInterrupt, Terminated) as stop:
        word, status = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        print_note(f"{word}: finished steps are kept, and the same command goes on from there")
        return status
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except MemoryError as error:
        print_note(
            f"error: this machine's memory does not suffice ({error}); ask for smaller images, batches or networks"
        )
        return FAILED
    except Exception as error:
        exit_status = _exit_status(error)
        if exit_status is None:
            raise
        print_note(f"error: {_error_sentence(error)}".replace("\n", "\n  "))
        return exit_status


def _error_sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error)


def _exit_status(error: Exception) -> int | None:
    """The exit status of an expected error; None for one that is ours to mend and deserves its traceback."""
    from edgewise.calib_data import DataError
    from edgewise.errors import EdgewiseError, RequestError
    from edgewise.models import ModelError
    from edgewise.targets import MissingBackend, TargetError

    if isinstance(error, MissingBackend):
        return MISSING_BACKEND
    if isinstance(error, (RequestError, DataError, ModelError, TargetError)):
        return WRONG_REQUEST
    if isinstance(error, OSError) and error.filename is not None and error.errno in _THEIRS:
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
    """Height and width from ``--input-size H W``; None where it is not given. Raises RequestError for sides that are none."""
    if options.input_size is None:
        return None
    from edgewise.targets import LARGEST_SIDE

    height, width = options.input_size
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise RequestError(f"--input-size: wanted sides from 1 to {LARGEST_SIDE}, found {height} {width}")
    return height, width


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode())  # a path need not be UTF-8


def print_note(text: str) -> None:
    """A line for the person, on standard error."""
    print(escape_text(text), file=sys.stderr)
