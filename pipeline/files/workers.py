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
    """Processes that lower; each imports what it needs once. Interrupted, they are stopped and not waited for."""
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
