"""What a device has, asked before anything is sent to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.device.link import DeviceError, Link, quote, run
from edgewise.targets import MissingBackend

OLDEST = (3, 9)
"""The oldest Python that the runner works on."""

_PYTHON = """
import json, os, platform, sys
try:
    from importlib import metadata
except ImportError:
    metadata = None
def version(name):
    try:
        if name == "executorch" and os.environ.get("EDGEWISE_EXECUTORCH"):
            return open(os.environ["EDGEWISE_EXECUTORCH"] + "/version").read().strip()
        return metadata.version(name)
    except Exception:
        return None
names = ("numpy", "onnxruntime", "executorch", "coremltools")
facts = {"python": list(sys.version_info[:3]), "packages": {n: version(n) for n in names}}
print(json.dumps({**facts, "machine": platform.machine(), "emulator": os.environ.get("EDGEWISE_EMULATED", "")}))
"""

_SCRIPT = """
mkdir -p {folder} && [ -w {folder} ] || {{ echo "folder=no"; exit 0; }}
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
df -k {folder} 2>/dev/null | {{ read -r _; rest=; while read -r line; do rest="$rest $line"; done; set -- $rest; echo "room=$4"; }}
if command -v sha256sum >/dev/null; then echo "digest=sha256sum"
elif command -v shasum >/dev/null; then echo "digest=shasum -a 256"; fi
if command -v {python} >/dev/null; then echo "python=$({python} -c {program})"; fi
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found."""

    system: str
    machine: str
    """The processor's architecture, as the interpreter sees it where there is one: an emulator's shell may be the host's."""
    room: int | None
    """Free bytes where bundles go; None where the device does not tell."""
    digest: str
    """The command that gives a file's SHA-256; empty where there is none."""
    python: tuple[int, ...] = ()
    packages: Mapping[str, Any] = field(default_factory=dict)
    """Package -> version, None where it is not installed."""
    emulator: str = ""
    """Which emulator the interpreter runs under; empty where it says none."""

    @property
    def described(self) -> str:
        """System and architecture, for people."""
        return f"{self.system} {self.machine}{f', emulated by {self.emulator}' if self.emulator else ''}"


def probe_device(link: Link, python: str) -> Probe:
    """Ask a device. ``python``: the interpreter to look for. Raises DeviceError where its folder cannot be written."""
    script = _SCRIPT.format(folder=quote(link.folder), python=quote(python), program=quote(_PYTHON))
    reply = run(link, script)
    facts = dict(line.partition("=")[::2] for line in reply.text.splitlines() if "=" in line)
    if facts.get("folder") == "no":
        raise DeviceError(f"{link.name}: {link.folder} on it cannot be written; name another with --device-folder")
    python_facts: Any = {}
    if facts.get("python"):
        try:
            python_facts = json.loads(facts["python"])
        except ValueError as error:
            raise DeviceError(f"{link.name}: {python} on it does not run: {reply.complaint}") from error
    room = facts.get("room", "")
    return Probe(
        system=facts.get("system", ""),
        machine=str(python_facts.get("machine") or facts.get("machine", "")),
        emulator=str(python_facts.get("emulator", ""))[:80],
        room=int(room) * 1024 if room.isdigit() else None,
        digest=facts.get("digest", ""),
        python=tuple(python_facts.get("python", ())),
        packages=python_facts.get("packages", {}),
    )


def check_device(answer: Probe, link: Link, size: int) -> None:
    """Raise DeviceError where the device cannot take ``size`` bytes of a bundle and hold them against their digest."""
    where = f"on {link.name}"
    if not answer.digest:
        raise DeviceError(f"wanted sha256sum or shasum {where}, found neither: install coreutils or busybox there")
    if answer.room is not None and answer.room < 2 * size:
        raise DeviceError(
            f"wanted {2 * size:,} free bytes in {link.folder} {where}, found {answer.room:,}: make room, or name another "
            "with --device-folder"
        )


def check_python(answer: Probe, link: Link, python: str, runtimes: Mapping[str, Any]) -> None:
    """Raise MissingBackend where the device's Python lacks what a bundle needs.

    ``runtimes``: package -> version of those that would do.
    """
    where = f"on {link.name}"
    if not answer.python:
        raise MissingBackend(
            f"wanted {python} {where}, found none: sudo apt-get install python3 python3-pip (Termux: pkg install python), "
            "or name another with --device-python; a phone without Python is measured in its browser with web://, and "
            ".pte files by a compiled program with --native"
        )
    if answer.python < OLDEST:
        have, least = (".".join(map(str, version)) for version in (answer.python, OLDEST))
        raise MissingBackend(f"wanted Python {least} or newer {where}, found {have}: name another with --device-python")
    missing = [name for name in ("numpy",) if answer.packages.get(name) is None]
    if not any(answer.packages.get(name) for name in runtimes):
        missing += [f"'{name}=={version}'" for name, version in runtimes.items()][:1]
    if missing:
        raise MissingBackend(
            f"wanted {' and '.join(missing)} for {python} {where}, found none: {python} -m pip install {' '.join(missing)}"
        )
