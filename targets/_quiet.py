"""Silences named foreign loggers and warnings around a call, and nothing else."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LEAF_SPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
"""torch's note, while it copies or exports a program, on how it looks at its own trees."""


@contextmanager
def quiet_loggers(*loggers: str, messages: tuple[str, ...] = ()) -> Iterator[None]:
    """Within the block the named loggers pass errors only; warnings whose text starts as ``messages`` are dropped."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        try:
            for name in loggers:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def without_standard_error() -> Iterator[None]:
    """Within the block nothing is printed to standard error, C++'s own messages included, which nothing else silences."""
    sys.stderr.flush()
    descriptor, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        os.close(silence)
