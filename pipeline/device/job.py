"""A bundle's measurement on a device, over any link: sent, started apart, asked after, fetched, cleared away.

Everything of it lies in one folder there, named by the bundle's digest. Each part can be done again after a lost link or
a kill and goes on from what is there: bytes that arrived are not sent again, finished files are not measured again, and
a measurement that still runs is waited for.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from edgewise.device.link import DeviceError, Done, Link, LinkLost, quote, run
from edgewise.targets import MissingBackend

T = TypeVar("T")

_SLOWEST = 50_000
"""Bytes a second that a link is given time for."""
_NO_ROOM = re.compile(r"No space left|ENOSPC|[Dd]isk full|quota exceeded", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A bundle's measurement."""

    link: Link
    digest: str
    """Of the bundle, SHA-256."""
    digest_command: str
    """That gives a file's SHA-256 on the device."""
    command: tuple[str, ...]
    """What is run in the job's folder; nothing else is."""

    @property
    def folder(self) -> str:
        """On the device."""
        return f"{self.link.folder.rstrip('/')}/edgewise-{self.digest[:16]}"

    @property
    def lock(self) -> str:
        """A folder on the device that is there while something is measured."""
        return f"{self.link.folder.rstrip('/')}/edgewise.lock"

    @property
    def identity(self) -> str:
        """Equal exactly for the same measurement of the same bundle."""
        return hashlib.sha256("\0".join((self.digest, *self.command)).encode()).hexdigest()[:32]


def put(job: Job, content: bytes, name: str = "bundle.pyz") -> int:
    """Make the file be on the device, whole; returns how many bytes had to be sent.

    Raises DeviceError where it has no room, where the folder is somebody else's, or where its copy differs twice.
    """
    digest, count = hashlib.sha256(content).hexdigest(), 0
    _make_folder(job)
    if _digest(job, name) == digest:
        return 0
    for _ in range(2):
        there = _remote_size(job, f"{name}.part")
        rest = content[there:] if there <= len(content) else b""
        count += len(rest)
        _append_bytes(job, f"{name}.part", rest, len(content))
        if _digest(job, f"{name}.part") == digest:
            _run_or_raise(job, f"mv {_remote_path(job, name)}.part {_remote_path(job, name)}", "keep the bundle")
            return count
        _run_or_raise(job, f"rm -f {_remote_path(job, name)}.part", "remove a damaged copy")
    raise DeviceError(
        f"{job.link.name}: its copy of {name} differs from what was sent, twice: its storage or the link is faulty"
    )


def put_program(job: Job, content: bytes, name: str) -> None:
    """Make a program be on the device, whole and executable; raises as ``put``."""
    put(job, content, name)
    _run_or_raise(job, f"chmod 700 {_remote_path(job, name)}", "make the program executable")


def _make_folder(job: Job) -> None:
    reply = run(
        job.link,
        f"umask 077; mkdir -p {quote(job.folder)} && [ -O {quote(job.folder)} ] && [ ! -L {quote(job.folder)} ]",
    )
    if reply.status:
        raise DeviceError(
            f"{job.link.name}: {job.folder} cannot be made or belongs to somebody else ({reply.complaint}); "
            "name another folder with --device-folder"
        )


def _append_bytes(job: Job, name: str, rest: bytes, whole: int) -> None:
    reply = run(job.link, f"cat >> {_remote_path(job, name)}", rest, 60 + len(rest) / _SLOWEST)
    if reply.status and _NO_ROOM.search(reply.err):
        # What arrived is of no use without the rest, and holds the room that is missing.
        run(job.link, f"rm -rf {quote(job.folder)}")
        raise DeviceError(
            f"{job.link.name}: no room left in {job.link.folder}: the bundle has {whole:,} bytes. Make room, or name another "
            "folder with --device-folder"
        )
    if reply.status:
        raise DeviceError(f"{job.link.name}: cannot write {job.folder}: {reply.complaint}")


def _digest(job: Job, name: str) -> str:
    """SHA-256 of a file there; empty where it is not."""
    reply = run(
        job.link, f"[ -f {_remote_path(job, name)} ] && {job.digest_command} {_remote_path(job, name)}", seconds=300
    )
    return reply.text.split()[0] if reply.status == 0 and reply.text else ""


def _remote_size(job: Job, name: str) -> int:
    text = run(job.link, f"[ -f {_remote_path(job, name)} ] && wc -c < {_remote_path(job, name)}").text.strip()
    return int(text) if text.isdigit() else 0


def _remote_path(job: Job, name: str) -> str:
    return quote(f"{job.folder}/{name}")


def _run_or_raise(job: Job, line: str, what: str) -> Done:
    reply = run(job.link, line)
    if reply.status:
        raise DeviceError(f"{job.link.name}: cannot {what}: {reply.complaint}")
    return reply


_ALIVE = """
alive() {{
  p=$(cat {lock}/pid 2>/dev/null) && [ -n "$p" ] && kill -0 "$p" 2>/dev/null || return 1
  [ ! -r "/proc/$p/cmdline" ] || grep -q edgewise "/proc/$p/cmdline"
}}
"""

_START = (
    _ALIVE
    + """
done_already() {{
  [ -f {folder}/status ] && [ -f {folder}/result.json ] && [ "$(cat {folder}/job 2>/dev/null)" = {identity} ]
}}
if done_already; then echo finished; exit 0; fi
if ! mkdir {lock} 2>/dev/null; then
  # Who made the lock a moment ago has not written its number yet.
  n=0; while [ ! -s {lock}/pid ] && [ -d {lock} ] && [ $n -lt 5 ]; do sleep 1; n=$((n+1)); done
  if alive; then
    if [ "$(cat {lock}/job 2>/dev/null)" = {identity} ]; then echo running; else echo "busy $p"; fi
    exit 0
  fi
  rm -rf {lock}; mkdir {lock} || exit 8
fi
# It may have ended while it was asked whether it runs.
if done_already; then rm -rf {lock}; echo finished; exit 0; fi
cd {folder} || exit 9
rm -f status result.json
echo {identity} > job; echo {identity} > {lock}/job
# Busybox may have one of the two, or none of them.
apart=$(command -v setsid || command -v nohup)
( trap '' HUP; exec $apart sh -c {program} ) >/dev/null 2>&1 </dev/null &
n=0; while [ ! -s {lock}/pid ] && [ ! -f status ] && [ $n -lt 300 ]; do sleep 0.1 2>/dev/null || sleep 1; n=$((n+1)); done
if [ ! -s {lock}/pid ] && [ ! -f status ]; then rm -rf {lock}; echo "nothing was started" >&2; exit 7; fi
echo started
"""
)

_PROGRAM = (
    "echo $$ > {lock}/pid; cd {folder}; {command} > out 2> log < /dev/null; "
    "echo $? > status.part; mv status.part status; rm -rf {lock}"
)


def start(job: Job) -> Literal["started", "running", "finished"]:
    """Start the measurement apart from the link; one that runs, or has run, is left as it is.

    Raises DeviceError where something else is being measured there.
    """
    lock, folder = quote(job.lock), quote(job.folder)
    program = _PROGRAM.format(lock=lock, folder=folder, command=quote(*job.command))
    script = _START.format(lock=lock, folder=folder, identity=job.identity, program=quote(program))
    reply = _run_or_raise(job, script, "start the measurement")
    pid = (reply.text.split() or [""])[0]
    if pid == "busy":
        raise DeviceError(
            f"{job.link.name}: another measurement runs there (process {reply.text.split()[-1]}); wait for it, or end it"
        )
    for state in ("started", "running", "finished"):
        if pid == state:
            return state
    raise DeviceError(f"{job.link.name}: cannot start the measurement: {reply.complaint}")


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a measurement is."""

    status: int | None
    """Its exit status; None while it runs, or where it was killed."""
    running: bool
    lines: tuple[str, ...] = ()
    """What it said so far."""

    @property
    def said(self) -> str:
        """Its last line."""
        return self.lines[-1] if self.lines else ""


def poll(job: Job) -> State:
    """Ask after the measurement."""
    lock, folder = quote(job.lock), quote(job.folder)
    # In this order: what runs may write its status and be gone between the two questions.
    ask = (
        f"{_ALIVE.format(lock=lock)}\nif alive; then echo running; elif [ -f {folder}/status ]; then "
        f"echo ended $(cat {folder}/status); else echo gone; fi; grep '^edgewise: ' {folder}/log 2>/dev/null | tail -n 500"
    )
    lines = run(job.link, ask).text.splitlines() or [""]
    word, _, status = lines[0].partition(" ")
    return State(
        status=int(status) if word == "ended" and status.isdigit() else None,
        running=word == "running",
        lines=tuple(line.strip().removeprefix("edgewise: ") for line in lines[1:]),
    )


def wait(
    job: Job,
    seconds: float,
    say: Callable[[str], None],
    every: float = 1.0,
    pauses: Sequence[float] = (1, 3, 10, 30),
) -> None:
    """Wait for the end of the measurement, asking ``every`` so many seconds, and over lost links as ``persist``.

    Raises DeviceError where it takes longer than ``seconds`` (it is then ended), was killed or failed, and
    MissingBackend where the device lacks the runtime.
    """
    until, count = time.monotonic() + seconds, 0
    while True:
        state = persist(lambda: poll(job), say, pauses)
        for line in state.lines[count:]:
            if not line.startswith("error: "):
                say(f"{job.link.name}: {line}")
        count = len(state.lines)
        if not state.running:
            return _raise_for_end(job, state)
        if time.monotonic() > until:
            end(job)
            raise DeviceError(
                f"{job.link.name}: not done after {seconds:.0f} s, and ended; give it longer with --timeout"
            )
        time.sleep(every)


def _raise_for_end(job: Job, state: State) -> None:
    again = "the same command goes on from the files that are finished"
    if state.status in (0, 1):
        return
    if state.status == 3:
        raise MissingBackend(f"{job.link.name}: {state.said.removeprefix('error: ')}")
    if state.status is None or state.status > 128:
        how = "was killed" if state.status is None else f"was killed by signal {state.status - 128}"
        raise DeviceError(f"{job.link.name}: the measurement {how} (out of memory, or by somebody); {again}")
    said = state.said.removeprefix("error: ") or run(job.link, f"tail -n 1 {_remote_path(job, 'log')}").text[:300]
    raise DeviceError(f"{job.link.name}: {said or f'the measurement ended with status {state.status}'}")


def end(job: Job) -> None:
    """End the measurement by its own process, and what it started."""
    lock = quote(job.lock)
    run(
        job.link,
        f'{_ALIVE.format(lock=lock)}\n[ "$(cat {lock}/job 2>/dev/null)" = {job.identity} ] && alive && '
        f'{{ kill -TERM -- "-$p" 2>/dev/null || kill -TERM "$p"; sleep 1; kill -KILL -- "-$p" 2>/dev/null; }}; '
        f"rm -rf {lock}",
    )


def fetch(job: Job, name: str = "result.json") -> bytes:
    """A file of the job. Raises DeviceError where it is not there, or arrives damaged twice."""
    for _ in range(2):
        digest = _digest(job, name)
        if not digest:
            log = run(job.link, f"tail -n 3 {_remote_path(job, 'log')} 2>/dev/null").text
            raise DeviceError(f"{job.link.name}: the measurement left no {name}: {log or 'it said nothing'}")
        content = run(job.link, f"cat {_remote_path(job, name)}", seconds=300).out
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    raise DeviceError(f"{job.link.name}: {name} arrives damaged: the link is faulty")


def clean(job: Job) -> None:
    """Leave nothing of the job behind."""
    run(job.link, f"rm -rf {quote(job.folder)}")


def persist(work: Callable[[], T], say: Callable[[str], None], pauses: Sequence[float]) -> T:
    """What ``work`` gives, tried again after each lost link with a pause; it must go on from where it was."""
    for pause in pauses:
        try:
            return work()
        except LinkLost as error:
            say(f"{error}; trying again")
            time.sleep(pause)
    return work()
