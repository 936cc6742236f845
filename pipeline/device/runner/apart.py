"""Work in a process of its own, so that a runtime that crashes costs its file's row and not the others'.

The child is a fork and starts no program: under an emulator there may be none to start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .runtimes import MissingRuntime


class Failed(Exception):
    """The work did not end well; the message says how."""


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, JSON types. Raises Failed, or MissingRuntime as it does."""
    if not hasattr(os, "fork"):
        return _answered(_tell(work))
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise Failed(f"its runtime crashed ({_signal(os.WTERMSIG(status))})")
    try:
        return _answered(json.loads(message.decode()))
    except ValueError as error:
        raise Failed(f"its process ended with status {os.WEXITSTATUS(status)} and no answer") from error


def _work(work: Callable[[], dict[str, Any]], writing: int) -> None:
    """In the child. It leaves at once: tearing a runtime down can crash after all is done."""
    status = 1
    try:
        content = json.dumps(_tell(work)).encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content)
        status = 0
    finally:
        os._exit(status)


def _tell(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"found": work()}
    except MissingRuntime as error:
        return {"missing": str(error)}
    except MemoryError:
        return {"failed": "the device has not enough memory for it"}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def _answered(told: dict[str, Any]) -> dict[str, Any]:
    if "missing" in told:
        raise MissingRuntime(told["missing"])
    if "failed" in told:
        raise Failed(f"its runtime refused it: {told['failed']}")
    answer: dict[str, Any] = told["found"]
    return answer


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
