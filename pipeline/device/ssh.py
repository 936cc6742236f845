"""A device behind SSH, by the OpenSSH client: the user's configuration, keys, agent, jump hosts and known hosts.

Host keys are checked as that client checks them and never otherwise; nothing is asked at a terminal.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.device.link import DeviceError, LinkLost, Raw, call
from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

_ADDRESS = re.compile(r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d+))?")
CONNECT = 15
"""Seconds to reach the device."""


@dataclass
class Ssh:
    """``ssh://[user@]host[:port]``."""

    name: str
    user: str
    address: str
    port: str
    options: Sequence[str] = ()
    folder: str = "/tmp"
    """On the device."""
    _sockets: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="ew-")
    )
    _reached: bool = field(default=False, init=False)

    @property
    def host(self) -> str:
        """As ``Link``."""
        return f"ssh {self.address}"

    def send(self, line: str, given: bytes, seconds: float) -> Raw:
        """As ``Link``. Raises DeviceError where the host is unknown, its key changed, or nobody is let in."""
        reply = call([*self._command(), "--", self.address, _in_sh(line)], given, seconds, self.name)
        if reply.status == 255:
            _raise_client_error(self.name, reply.err, self._reached)
        else:
            self._reached = True
        return reply

    def _command(self) -> list[str]:
        options = [f"-p{self.port}"] if self.port else []
        options += ["-l", self.user] if self.user else []
        alive = ["ServerAliveInterval=5", "ServerAliveCountMax=3", f"ConnectTimeout={CONNECT}"]
        sharing = ["ControlMaster=auto", f"ControlPath={self._sockets.name}/%C", "ControlPersist=20"]
        plain = ["BatchMode=yes", "LogLevel=ERROR", "ClearAllForwardings=yes", "RequestTTY=no", *alive, *sharing]
        return ["ssh", *self.options, *(part for option in plain for part in ("-o", option)), *options]

    def close(self) -> None:
        """End the shared connection."""
        if any(Path(self._sockets.name).iterdir()):
            call([*self._command(), "-O", "exit", "--", self.address], b"", CONNECT, self.name)
        self._sockets.cleanup()


def parse(address: str, options: Sequence[str] = (), folder: str | None = None) -> Ssh:
    """The link of an address. Raises RequestError for one that is none, MissingBackend without the client."""
    match = _ADDRESS.fullmatch(address.removeprefix("ssh://").rstrip("/"))
    # A name that begins with a dash would be read as an option.
    if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
        raise RequestError(f"device {address!r}: wanted ssh://[user@]host[:port]")
    if shutil.which("ssh") is None:
        raise MissingBackend("ssh:// needs the OpenSSH client: sudo apt-get install openssh-client")
    return Ssh(address, match["user"] or "", match["host"].strip("[]"), match["port"] or "", options, folder or "/tmp")


def _in_sh(line: str) -> str:
    # The login shell may be any; what follows is POSIX.
    return f"exec sh -c {shlex.quote(line)}"


_KNOWN = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed since it was last seen. If the device was set up anew, forget the old key with "
        "ssh-keygen -R and connect once by hand; if not, something stands between you and it",
    ),
    (
        "Host key verification failed",
        "its host key is not known here. Connect once by hand with ssh, compare the key with the device's, and accept it",
    ),
    ("Permission denied", "it lets nobody in without a password: put your public key on it with ssh-copy-id"),
)
_AWAY = (
    ("Connection refused", "nothing listens there: start sshd on it, or name its port in the address"),
    ("Could not resolve", "no such host is known: give its name or address as ssh://user@host"),
    ("timed out", "it did not answer: is it on, and on this network?"),
    ("No route to host", "it did not answer: is it on, and on this network?"),
    ("Network is unreachable", "it did not answer: is it on, and on this network?"),
)
"""What passes by itself where the device has been reached before: it starts again, or its network comes back."""


def _raise_client_error(name: str, said: str, reached: bool) -> None:
    """Raise for what the client said of itself; nothing for a line that broke within a command, which shows by itself."""
    for words, meaning in _KNOWN:
        if words in said:
            raise DeviceError(f"{name}: {meaning}")
    for words, meaning in _AWAY:
        if words in said:
            kind = LinkLost if reached else DeviceError
            raise kind(f"{name}: the link was lost: {meaning}" if reached else f"{name}: {meaning}")
