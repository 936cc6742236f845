"""A way to a device: one primitive that runs a line of POSIX shell there, and what every way builds on it.

Each command's exit status comes back in its own output behind a number that is drawn for it, since a transport's own
status cannot be trusted: adb's is 0 on a cut line. Output without that mark is a lost link.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgewise.errors import EdgewiseError

SECONDS = 60.0
"""That an ordinary command may take."""


class DeviceError(EdgewiseError):
    """A device could not do what it was asked to; the message says what to do."""


class LinkLost(DeviceError):
    """The link broke while a command ran. What the device holds is kept."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a transport gave."""

    out: bytes
    err: str
    status: int
    """The transport's own."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command on the device gave."""

    out: bytes
    err: str
    status: int

    @property
    def text(self) -> str:
        """Standard output as text, without trailing white space."""
        return self.out.decode(errors="replace").rstrip()

    @property
    def complaint(self) -> str:
        """The last line of standard error, else of the output."""
        lines = (self.err.strip() or self.text).splitlines()
        return lines[-1][:300] if lines else f"status {self.status}"


class Link(Protocol):
    """A transport."""

    @property
    def name(self) -> str:
        """The address, as it was asked for."""

    @property
    def host(self) -> str:
        """The physical machine behind it: two links to one never measure at once."""

    @property
    def folder(self) -> str:
        """Where on the device bundles are kept while they run."""

    def send(self, line: str, given: bytes, seconds: float) -> Raw:
        """Run a line of shell there with ``given`` on its standard input.

        Raises LinkLost where it took longer, DeviceError where there is no way to the device.
        """

    def close(self) -> None:
        """Let go of what the link holds."""


def run(link: Link, line: str, given: bytes = b"", seconds: float = SECONDS) -> Done:
    """Run a line of shell on the device. Raises LinkLost where its exit status did not come back."""
    mark = secrets.token_hex(8)
    reply = link.send(f"( {line}\n); printf '\\n%s %s\\n' {mark} $?", given, seconds)
    out, _, status = reply.out.rpartition(f"\n{mark} ".encode())
    if not status.strip().isdigit():
        raise LinkLost(f"{link.name}: the link was lost: {_last_line(reply.err) or 'the device said nothing'}")
    return Done(out=out, err=reply.err, status=int(status))


def call(command: Sequence[str], given: bytes, seconds: float, name: str) -> Raw:
    """Run a program here that reaches a device. Raises LinkLost where it takes longer than ``seconds``."""
    try:
        process = subprocess.run(command, input=given, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise LinkLost(f"{name}: no answer within {seconds:.0f} s") from error
    return Raw(out=process.stdout, err=process.stderr.decode(errors="replace"), status=process.returncode)


def quote(*words: str) -> str:
    """Words as the device's shell takes them."""
    return shlex.join(words)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
