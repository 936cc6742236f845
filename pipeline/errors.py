"""What can go wrong, as one tree.

::

    EdgewiseError
    ├── RequestError (also a ValueError)   the request is wrong; nothing was run            exit status 2
    ├── StageError                         a step could not do what it was asked to         exit status 1
    ├── LoweringError                      a target could not write or run its file         exit status 1
    ├── StoreError                         a kept result could not be written or read       exit status 1
    ├── EvidenceError                      what a file was verified with is gone or changed  exit status 1
    └── CrashError                         a runtime died of a file                          exit status 1

    calib_data.DataError, models.ModelError, targets.TargetError: ValueErrors of the leaves      exit status 2
    targets.MissingBackend: an ImportError; its message holds the install line                   exit status 3

Every message says what was wanted, what was found and what to do.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


def first_line(error: BaseException) -> str:
    """What ``error`` says first; its type, where it says nothing, as a bare ``assert`` does."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """The file and the line that raised ``error``."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def name_nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the choice spelt most like ``name``, after a space; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class EdgewiseError(Exception):
    """Root of the project's own errors."""


class RequestError(EdgewiseError, ValueError):
    """The request cannot be met as it stands; found before anything was run."""


class StageError(EdgewiseError):
    """A step could not do what it was asked to do."""


class LoweringError(EdgewiseError):
    """A target could not write its file, or its runtime could not run it."""


class StoreError(EdgewiseError):
    """A kept result could not be written or read."""


class EvidenceError(EdgewiseError):
    """What a file was verified with (its card, golden images, digests, network) is missing, changed or damaged."""


class CrashError(EdgewiseError):
    """A process that a runtime ran in died, or failed in a way that no reader of files means."""
