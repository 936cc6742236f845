"""Workers on this machine: one process each, started again where one dies, gone with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.errors import CrashError, RequestError
from edgewise.search.alive import PARENT
from edgewise.search.records import read_records
from edgewise.search.session import Search, cpus_of, follow, threads_of

MOST_DEATHS = 3
"""Workers in a row that may die without any trial finished in between."""


@dataclass
class Crew:
    """The workers of one command."""

    search: Search
    arguments: Sequence[str]
    """Of ``edgewise``, for a worker."""
    count: int
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _deaths: int = 0
    _finished: int = 0

    def work(self) -> None:
        """Have workers run until they say that there is nothing left. Raises what ended them otherwise."""
        try:
            for index in range(self.count):
                self._start(index)
            for _ in follow(self.search, self._is_over):
                pass
        finally:
            self._stop()

    def _start(self, index: int) -> None:
        log = self.log_of(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ) | {PARENT: str(os.getpid())}
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(threads_of(self.count))
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgewise", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
            )
        if cpus := cpus_of(index, self.count):
            os.sched_setaffinity(process.pid, cpus)
        self._running[index] = process

    def log_of(self, index: int) -> Path:
        """Where a worker's lines go."""
        return self.search.out / "workers" / f"{index + 1}.log"

    def _is_over(self) -> bool:
        for index, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[index]
            if status != 0:
                self._answer(index, status)
        return not self._running

    def _answer(self, index: int, status: int) -> None:
        """What becomes of a worker's end: started again where it was killed, an error where the request is wrong."""
        last = _last_line(self.log_of(index))
        if status in (2, 3):
            raise RequestError(last.removeprefix("error: ") or f"worker {index + 1} refused the request")
        finished = sum(record.is_finished for record in read_records(self.search.study))
        self._deaths = 1 if finished > self._finished else self._deaths + 1
        self._finished = finished
        how = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}: {last}"
        if self._deaths > MOST_DEATHS:
            raise CrashError(f"worker {index + 1} {how}, as did those before it; see {self.log_of(index)}")
        self.search.watch.warn(f"worker {index + 1} {how}; another takes its place, and its trial is tried again")
        self._start(index)

    def _stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        end = time.monotonic() + 20
        for process in self._running.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        self._running.clear()


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if starts:  # an error's further lines are set in
        tail = lines[starts[-1] :]
        return " ".join(line.strip() for line in tail)
    return lines[-1].strip() if lines else ""
