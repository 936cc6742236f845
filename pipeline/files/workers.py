"""The worker processes that write files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@contextlib.contextmanager
def start_workers(count: int = 2) -> Iterator[Executor]:
    """Processes that lower; each imports what it needs once. Interrupted, they are stopped and not waited for.

    Within ``share_workers`` they are those of the runs before.
    """
    if _shared:
        yield _shared_pool(count)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_quiet_worker)
    try:
        yield pool
    except Exception:
        # A worker that is killed leaves to the interpreter's end, and to its warning, what the libraries in it hold.
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


_shared: list[ProcessPoolExecutor | None] = []
"""One entry while runs share their workers: the pool, once there is one."""


@contextlib.contextmanager
def share_workers() -> Iterator[None]:
    """Within the block, one run after another takes the same worker processes, which have imported what they need."""
    _shared.append(None)
    try:
        yield
    finally:
        pool = _shared.pop()
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _shared_pool(count: int) -> Executor:
    """The pool that is shared; a new one where a file has taken a process of the last with it."""
    pool = _shared[-1]
    if pool is None or pool._broken:
        context = multiprocessing.get_context("spawn")
        pool = _shared[-1] = ProcessPoolExecutor(count, mp_context=context, initializer=_quiet_worker)
    return pool


def _quiet_worker() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run that started us decides
    die_with_parent()
    from edgewise.library_noise import quieten_libraries

    quieten_libraries()
    import torch

    torch.set_num_threads(1)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it is killed; elsewhere a broken pipe ends it."""
    import ctypes
    import signal
    import sys

    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)
