"""Which trials are at work, and which belong to a worker that is no more: those are failed, and tried again.

Each running trial carries who runs it. A worker of the same machine is looked up by its process; of one elsewhere, a sign of
life must come every so often: as Optuna's heartbeat where the storage has one, else as a count that the trial carries. How long
none came is told by the observer's own clock, so that clocks of several hosts need not agree.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.search.storage import BEAT, GRACE

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

ALIVE = "edgewise:worker"
"""User attribute of a trial: who runs it."""
PARKED = "edgewise:untimed"
"""User attribute of a trial that is done but for its times, which a worker on another machine takes."""
MOST_RETRIES = 5
"""Workers that a trial may outlive; then it is given up, and another takes its place."""


PARENT = "EDGEWISE_SEARCH_PARENT"
"""In a worker's environment: who started it, and with whom it goes."""


def go_with_parent() -> None:
    """In a worker that another process of this machine started: end with it."""
    if os.environ.get(PARENT):
        from edgewise.files.workers import die_with_parent

        die_with_parent()


@cache
def machine_mark() -> str:
    """What only processes of one running system share, and see each other in: its name, its start, its process numbers."""
    parts = [platform.node(), _read(Path("/proc/sys/kernel/random/boot_id"))]
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(part for part in parts if part)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def process_start(process: int) -> str:
    """When a process began, in its system's ticks, which tells it from a later one of the same number; empty where unknown."""
    with contextlib.suppress(OSError, IndexError):
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    return ""


def describe_worker(number: int, beat: int = 0) -> dict[str, Any]:
    """This process, as the trial ``number`` carries it."""
    process = os.getpid()
    return {"trial": number, "on": machine_mark(), "pid": process, "start": process_start(process), "beat": beat}


def is_process_gone(worker: Mapping[str, Any]) -> bool:
    """Whether the process that a trial carries ran on this machine and is no more."""
    if worker.get("on") != machine_mark():
        return False
    process = int(worker.get("pid", 0))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return process_start(process) != worker.get("start") or _is_zombie(process)


def _is_zombie(process: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            == "Z"
        )
    return False


@contextlib.contextmanager
def pulse(storage: BaseStorage, trial: FrozenTrial, beat: float = BEAT) -> Any:
    """Within the block, the trial carries this process and its signs of life."""
    from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled

    ended = threading.Event()
    identity, number = trial._trial_id, trial.number
    storage.set_trial_user_attr(identity, ALIVE, describe_worker(number))

    def go_on() -> None:
        count = 0
        while not ended.wait(beat if count else 0):
            count += 1
            with contextlib.suppress(Exception):  # a storage that is away for a moment: the trial itself will tell
                if isinstance(storage, BaseHeartbeat) and is_heartbeat_enabled(storage):
                    storage.record_heartbeat(identity)
                elif count > 1:
                    storage.set_trial_user_attr(identity, ALIVE, describe_worker(number, count))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


@dataclass
class Observer:
    """What this process has seen of others' trials: since when their sign of life is the same."""

    storage: BaseStorage
    grace: float = GRACE
    seen: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def sweep(self, study: Study) -> list[int]:
        """Fail the trials of workers that are no more, each once, whoever sweeps; their numbers. Each is tried again."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.storages import fail_stale_trials
        from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
        from optuna.trial import TrialState

        beats = self.storage if isinstance(self.storage, BaseHeartbeat) and is_heartbeat_enabled(self.storage) else None
        numbers = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(PARKED) and beats is not None:
                beats.record_heartbeat(trial._trial_id)  # nobody runs it, and it is to stay
            if not self.is_dead(trial):
                continue
            with contextlib.suppress(UpdateFinishedTrialError):  # another worker was first
                if self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                    retry_trial(study, trial)
                    numbers.append(trial.number)
        fail_stale_trials(study)  # what the storage's own heartbeat tells, where it has one
        return numbers

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is no more."""
        if trial.user_attrs.get(PARKED):
            return False
        worker = trial.user_attrs.get(ALIVE)
        if worker is None or worker.get("trial") != trial.number:
            worker = None
        if worker is not None and is_process_gone(worker):
            return True
        if worker is not None and worker.get("on") == machine_mark():
            return False
        return self._is_silent(trial.number, worker)

    def _is_silent(self, number: int, sign: Any) -> bool:
        from optuna.storages._heartbeat import is_heartbeat_enabled

        if is_heartbeat_enabled(self.storage) and sign is not None:
            return False  # the storage tells
        now = time.monotonic()
        before, since = self.seen.get(number, (None, now))
        if number not in self.seen or before != sign:
            self.seen[number] = (sign, now)
            return False
        return now - since > self.grace


def retry_trial(study: Study, trial: FrozenTrial) -> None:
    """Have the values of a dead worker's trial tried again, unless it has outlived several workers."""
    from optuna import create_trial
    from optuna.trial import TrialState

    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    if len(history) > MOST_RETRIES:
        return
    fixed = trial.system_attrs.get("fixed_params")
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=dict(trial.params),
            distributions=dict(trial.distributions),
            system_attrs={
                "failed_trial": history[0],
                "retry_history": history,
                **({} if fixed is None else {"fixed_params": fixed}),
            },
        )
    )
