"""A bundle measured on one device: from the address to the report's rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.device import accept, adb, job, local, program, result, ssh
from edgewise.device.bundle import Bundle
from edgewise.device.link import Link
from edgewise.device.probe import Probe, check_device, check_python, probe_device
from edgewise.device.program import Program
from edgewise.errors import RequestError
from edgewise.report.devices import DeviceRow
from edgewise.store.whole import write_whole

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to measure."""

    mode: tuple[str, ...] = ("--quick",)
    """As the bundle takes it: ``--quick``, ``--normal``, ``--sustained 30``, ``--brief 1``."""
    threads: int = 1
    pin: str | None = None
    only: tuple[str, ...] = ()
    any_version: bool = False
    python: str | None = None
    """The device's interpreter; None: python3, here the one that runs this."""
    native: Path | None = None
    """A program compiled for the device that measures ``.pte`` files without Python; None: the bundle's own runner."""
    folder: str | None = None
    """Where on the device bundles go; None: the link's own choice."""
    keep: bool = False
    """Leave the bundle and its result on the device."""
    timeout: float | None = None
    """Seconds; None: four times what the mode asks for, and half an hour."""
    ssh_options: tuple[str, ...] = ()
    pauses: tuple[float, ...] = (1, 3, 10, 30)
    """Seconds before each new try after a lost link."""
    web_runtime: Path | None = None
    """node_modules with onnxruntime-web, for browsers; None: that of this folder."""

    def arguments(self) -> tuple[str, ...]:
        """As the bundle takes them."""
        words = [*self.mode, "--threads", str(self.threads)]
        words += ["--pin", self.pin] if self.pin else []
        words += ["--any-version"] if self.any_version else []
        return (*words, *(part for name in self.only for part in ("--only", name)))

    def seconds(self, files: int) -> float:
        """That the measurement may take."""
        if self.timeout is not None:
            return self.timeout
        word, *rest = self.mode
        each = {"--normal": 60.0 * files, "--sustained": 60.0 * float(rest[0] if rest else 0)}.get(word, 10.0 * files)
        return 1800 + 4 * each


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a device gave."""

    device: str
    path: Path
    """The kept result."""
    rows: tuple[DeviceRow, ...]


def connect(address: str, request: Request) -> Link:
    """The link of an address. Raises RequestError for one that is none."""
    connection: Link
    if address == "local":
        return local.Local() if request.folder is None else local.Local(folder=request.folder)
    if address.startswith("ssh://"):
        connection = ssh.parse(address, request.ssh_options, request.folder)
    elif address.startswith("adb://"):
        connection = adb.parse(address, request.folder)
    else:
        raise RequestError(
            f"device {address!r}: wanted local, ssh://[user@]host[:port], adb://SERIAL, or web://, web://chromium, web://node"
        )
    return connection


def measure(bundle: Bundle, link: Link, request: Request, say: Say, name: str, every: float = 1.0) -> Measurement:
    """Measure a bundle over a link, keep the result beside the bundle, and take it in.

    Raises DeviceError, MissingBackend or ResultError; what is finished on the device stays there for the same command.
    """
    python = request.python or (sys.executable if link.host == "local" else "python3")
    runner = program.read(request.native) if request.native is not None else None
    probe_facts = job.persist(lambda: probe_device(link, python), say, request.pauses)
    _check_runner(probe_facts, link, python, runner, bundle)
    start = (python,) if runner is None else (f"./{runner.name}",)
    command = (*start, "bundle.pyz", *request.arguments(), "--progress", "progress.jsonl", "--out", "result.json")
    work = job.Job(link=link, digest=bundle.sha256, digest_command=probe_facts.digest, command=command)
    content = bundle.path.read_bytes()
    say(f"{link.name}: {probe_facts.described}, sending {len(content) + (runner.size if runner else 0):,} bytes")
    job.persist(lambda: job.put(work, content), say, request.pauses)
    if runner is not None:
        job.persist(lambda: job.put_program(work, runner.content, runner.name), say, request.pauses)
    job.persist(lambda: job.start(work), say, request.pauses)
    job.wait(work, request.seconds(len(bundle.manifest.files)), say, every, request.pauses)
    result_bytes = job.persist(lambda: job.fetch(work), say, request.pauses)
    intake = take_in(bundle, result_bytes, name, request.mode[0].lstrip("-"))
    if not request.keep:
        job.persist(lambda: job.clean(work), say, request.pauses)
    return intake


def _check_runner(facts: Probe, link: Link, python: str, runner: Program | None, bundle: Bundle) -> None:
    if runner is None:
        check_python(facts, link, python, bundle.manifest.wanted)
    else:
        runner.check(facts.machine, link.name, [file.target for file in bundle.manifest.files])
    check_device(facts, link, bundle.bytes + (0 if runner is None else runner.size))


def take_in(bundle: Bundle, content: bytes, name: str, mode: str) -> Measurement:
    """Keep a result that is what it should be. Raises ResultError, and keeps nothing, for one that is not."""
    rows = accept.accept_result(result.parse(content, name), bundle.manifest, bundle.sha256, name)
    place = bundle.path.parent / "devices" / slug(name) / f"{bundle.sha256[:16]}-{mode}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, content)
    return Measurement(device=name, path=place, rows=tuple(rows))


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "device"


def has_failures(rows: Sequence[DeviceRow]) -> bool:
    """Whether a file failed."""
    return any(row.verdict == "fail" for row in rows)
