"""A worker process with a limit on time and memory: what hangs or grows is ended, and the journey goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from edgewise.files import workers

_LOOK_EVERY = 2.0  # seconds


class _Ended(BaseException):
    """Makes ``lower.workers`` end its process at once instead of waiting for it."""


class Worker:
    """Calls functions in a process of its own, which is kept from call to call as long as it behaves."""

    def __init__(self, seconds: float, memory: int) -> None:
        """``seconds`` a call may take, and bytes of main memory the process may hold."""
        self._seconds, self._memory = seconds, memory
        self._process: ExitStack | None = None
        self._pool: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(at_once=error is not None)

    def do(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """The function's result; where there is none, ``{"failed": reason}``."""
        if self._process is None:
            self._process = ExitStack()
            self._pool = self._process.enter_context(workers.start_workers(1))
        future: Future[dict[str, Any]] = self._pool.submit(work, *arguments)
        try:
            result = self._wait(future)
        except BrokenProcessPool:
            self.end()
            return {"failed": "the process died: out of memory, or a crash of the backend"}
        if result is None:
            self.end()
            return {
                "failed": f"ended after {self._seconds:.0f} s, or at more than {self._memory / 1e9:.0f} GB of memory"
            }
        if result.get("memory_bytes", 0) > self._memory / 2:
            self.end(at_once=False)
        return result

    def _wait(self, future: Future[dict[str, Any]]) -> dict[str, Any] | None:
        start = time.monotonic()
        while True:
            try:
                return future.result(_LOOK_EVERY)
            except TimeoutError:
                if time.monotonic() - start > self._seconds or self._held() > self._memory:
                    return None

    def _held(self) -> int:
        """Bytes of main memory that the process holds now; 0 where the system does not tell."""
        total = 0
        for identity in list(self._pool._processes or {}):
            try:
                pages = int(Path(f"/proc/{identity}/statm").read_text(encoding="ascii").split()[1])
            except (OSError, IndexError, ValueError):
                continue
            total += 4096 * pages
        return total

    def end(self, *, at_once: bool = True) -> None:
        """End the process (``at_once``: whatever it does); the next call gets a new one."""
        if self._process is None:
            return
        process, self._process, self._pool = self._process, None, None
        if at_once:
            process.__exit__(_Ended, _Ended(), None)
        else:
            process.close()
