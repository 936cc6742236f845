"""Work that native code may die of, in a process of its own: a runtime that crashes on a file ends that process, not ours."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import targets
from edgewise.errors import CrashError, EdgewiseError
from edgewise.files.open import open_file
from edgewise.files.workers import die_with_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from torch import Tensor

    from edgewise.targets import Runner


Work = Callable[..., Any]

_LAST_WORDS = 300
"""Characters of what a dead process said last that are told."""


@contextlib.contextmanager
def call_remotely(make: Callable[..., Work], *arguments: Any, what: str) -> Iterator[Work]:
    """What ``make(*arguments)`` returns, as a function here that works in a fresh process there, until the block ends.

    ``make``, its arguments, and what is given to and returned by its result are pickled; ``what`` says in words what goes
    on. Errors of ours and of the leaves are raised here as they were there. Raises CrashError for any other, and where the
    process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "stderr"
        process = context.Process(target=_serve_calls, args=(theirs, str(words), make, arguments), daemon=True)
        process.start()
        theirs.close()
        far = _Far(process, ours, words, what)
        try:
            far.answer()
            yield far
        finally:
            ours.close()  # which ends it, and lets its libraries put away what they hold
            process.join(5)
            process.kill()
            process.join()


@contextlib.contextmanager
def open_isolated(target: str, path: Path, threads: int = 1) -> Iterator[Runner]:
    """A file's evaluator, its runtime or else its reference, in a process of its own.

    Raises TargetError for a file that it refuses, and CrashError where it dies of it, on loading or in a call.
    """
    with call_remotely(_make_evaluator, target, path, threads, what=f"running {path.name} in {target}") as answer:

        def run(images: Tensor) -> Tensor:
            import torch

            return torch.from_numpy(answer(images.numpy()))

        yield run


def _make_evaluator(target: str, path: Path, threads: int) -> Work:
    evaluator = open_file(targets.get(target), path, threads)
    if evaluator.runner is None:
        raise targets.TargetError(evaluator.reason)

    def answer(images: Any) -> Any:
        import torch

        return evaluator.answer(torch.from_numpy(images)).contiguous().numpy()

    return answer


class _Far:
    """The far end: called, it works there."""

    def __init__(self, process: SpawnProcess, connection: Connection, words: Path, what: str) -> None:
        self.process, self.connection, self.words, self.what = process, connection, words, what

    def __call__(self, *arguments: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # it died; ``answer`` says how
            self.connection.send(arguments)
        return self.answer()

    def answer(self) -> Any:
        try:
            result, error = self.connection.recv()
        except (EOFError, ConnectionError) as gone:
            raise CrashError(f"{self.what}: {self._death()}") from gone
        if isinstance(error, str):
            raise CrashError(f"{self.what}: {error}")
        if error is not None:
            raise error
        return result

    def _death(self) -> str:
        self.process.join(30)
        code = self.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        with contextlib.suppress(OSError):
            last_words = self.words.read_bytes()[-_LAST_WORDS:].decode(errors="replace")
            last = " ".join("".join(c if c.isprintable() else " " for c in last_words).split())
            return f"the process died ({name})" + (f": {last}" if last else "")
        return f"the process died ({name})"


def _serve_calls(connection: Connection, words: str, make: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    """What the process does: makes its work, then does it for whatever it is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    die_with_parent()
    aside = os.open(words, os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(aside, 2)  # native code writes to the descriptor, whatever sys.stderr is
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    work = _send_outcome(connection, lambda: make(*arguments), made=True)
    while work is not None:
        try:
            message = connection.recv()
        except EOFError:
            return
        _send_outcome(connection, lambda given=message: work(*given))  # type: ignore[misc]


def _send_outcome(connection: Connection, do: Callable[[], Any], made: bool = False) -> Any:
    """Do something and send what came of it; returns it where it is the work that was ``made``."""
    try:
        result = do()
    except (EdgewiseError, ValueError, ImportError) as error:
        connection.send((None, error if _is_expected(error) else _error_line(error)))
    except BaseException as error:
        connection.send((None, _error_line(error)))
    else:
        connection.send((None if made else result, None))
        return result
    return None


def _is_expected(error: Exception) -> bool:
    from edgewise.calib_data import DataError
    from edgewise.models import ModelError

    return isinstance(error, (EdgewiseError, DataError, ModelError, targets.TargetError, targets.MissingBackend))


def _error_line(error: BaseException) -> str:
    """An error in one line; a message that is no text, as native code's can be, is told by its kind alone."""
    try:
        text = str(error).splitlines()[:1]
    except Exception:
        text = []
    return ": ".join([type(error).__name__, *text])[:2000]
