"""Which processors the threads of this process may use while something is timed."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def pin_threads(threads: int | None) -> Iterator[frozenset[int]]:
    """Within the block, keep the calling thread and the runtimes' own pools on ``threads`` of the allowed processors.

    A thread that the scheduler moves finds its caches cold, and what it was moved for is no part of the file's time. The
    kernel keeps a set of processors for every thread, and pools such as XNNPACK's exist before the timing begins, so each
    thread of the process is pinned; afterwards each gets back the set it had, one born within the block that of the caller.
    Python's other threads (a progress bar) keep theirs: on the timed thread's processor they would interrupt it.

    Gives the processors chosen: none where ``threads`` is None or the system cannot pin (all but Linux).
    """
    if threads is None or sys.platform != "linux":
        yield frozenset()
        return
    permitted = os.sched_getaffinity(0)
    before = {task: affinity for task in _own_threads() if (affinity := _affinity(task)) is not None}
    cpus = frozenset(_cores_first(permitted)[:threads])
    try:
        for task in before:
            _move_task(task, cpus)
        yield cpus
    finally:
        for task in _own_threads():
            _move_task(task, before.get(task, frozenset(permitted)))


def _own_threads() -> list[int]:
    """This process's threads, without Python's own others."""
    others = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    return [task for entry in Path("/proc/self/task").iterdir() if (task := int(entry.name)) not in others]


def _cores_first(allowed: set[int]) -> list[int]:
    """Processors in order, those that share a core with an earlier one last."""
    siblings = {cpu: _siblings(cpu) for cpu in allowed}
    return sorted(allowed, key=lambda cpu: (min(siblings[cpu] & allowed, default=cpu) != cpu, cpu))


def _siblings(cpu: int) -> set[int]:
    """The processors of the same core, itself included."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return {cpu}
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {cpu}.union(*(range(int(low), int(high or low) + 1) for low, _, high in ranges))


# A thread may end at any moment, and then has no processors to tell or to be given.
def _affinity(task: int) -> frozenset[int] | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return frozenset(os.sched_getaffinity(task))
    return None


def _move_task(task: int, cpus: frozenset[int]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setaffinity(task, cpus)
