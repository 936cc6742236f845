"""An Android device by the adb client: over USB or the network, in its shell's user and folder.

Its exit status is 0 on a cut line and on some devices always, so only what comes back in the output counts.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass, field

from edgewise.device.link import DeviceError, LinkLost, Raw, call
from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_AWAY = re.compile(r"device offline|device '.*' not found|device not found|no devices/emulators found")
_SHY = re.compile(r"unauthorized|still authorizing")
PATIENCE = 15.0
"""Seconds that a device which is coming back is waited for."""


@dataclass
class Adb:
    """``adb://SERIAL``, as ``adb devices`` names it."""

    name: str
    serial: str
    folder: str = "/data/local/tmp"
    _reached: bool = field(default=False, init=False)

    @property
    def host(self) -> str:
        """As ``Link``."""
        return f"adb {self.serial}"

    def send(self, line: str, given: bytes, seconds: float) -> Raw:
        """As ``Link``. Raises DeviceError for a device that is not there, offline or not authorized."""
        reply = self._shell(line, given, seconds)
        if _AWAY.search(reply.err) and self._return(reply.err):
            reply = self._shell(line, given, seconds)
        self._refuse(reply.err)
        self._reached = True
        return reply

    def _return(self, said: str) -> bool:
        """Whether a device that is away may be back: connected anew, or waited for."""
        network = ":" in self.serial
        if not (network or self._reached or "offline" in said):
            return False  # a serial that was never there is more likely mistyped than plugged in just now
        until, pause = time.monotonic() + PATIENCE, 0.05
        while True:
            # After a cut the server keeps the old connection for a while, offline, and connects no other beside it.
            disconnected = network and not self._connect()
            if self._ready(min(until, time.monotonic() + 20 * pause)):
                return True
            if time.monotonic() > until or (disconnected and not self._reached):
                return False
            time.sleep(pause)
            pause *= 2

    def _connect(self) -> bool:
        self._ask("disconnect", self.serial)
        # Its exit status is 0 even where it failed.
        return "connected to" in self._ask("connect", self.serial)

    def _ready(self, until: float) -> bool:
        """Whether the device takes commands, or says by then that it will not."""
        while True:
            state = self._ask("-s", self.serial, "get-state")
            if state.strip() == "device" or "unauthorized" in state:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.05)

    def _ask(self, *words: str) -> str:
        reply = call(["adb", *words], b"", 20, self.name)
        return reply.out.decode(errors="replace") + reply.err

    def _shell(self, line: str, given: bytes, seconds: float) -> Raw:
        return call(["adb", "-s", self.serial, "shell", line], given, seconds, self.name)

    def _refuse(self, said: str) -> None:
        if _SHY.search(said):
            raise DeviceError(
                f"{self.name}: it has not authorized this computer: unlock it and accept the question it shows"
            )
        if not _AWAY.search(said):
            return
        if self._reached:
            raise LinkLost(f"{self.name}: the link was lost: {said.strip().splitlines()[-1]}")
        if "offline" in said:
            raise DeviceError(f"{self.name}: it is offline: plug it in again, or adb reconnect")
        raise DeviceError(f"{self.name}: there is no such device; {_only_device()}")

    def close(self) -> None:
        """As ``Link``."""


def parse(address: str, folder: str | None = None) -> Adb:
    """The link of an address. Raises RequestError for one that is none, MissingBackend without the client."""
    serial = address.removeprefix("adb://").rstrip("/")
    if not _SERIAL.fullmatch(serial):
        raise RequestError(f"device {address!r}: wanted adb://SERIAL, as adb devices -l lists it")
    if shutil.which("adb") is None:
        raise MissingBackend("adb:// needs the adb client: sudo apt-get install adb")
    return Adb(address, serial, folder or "/data/local/tmp")


def _only_device() -> str:
    lines = call(["adb", "devices"], b"", 20, "adb").out.decode(errors="replace").splitlines()[1:]
    listed = [line.split() for line in lines if line.strip()]
    serials = [words[0] if words[1:] == ["device"] else f"{words[0]} ({' '.join(words[1:])})" for words in listed]
    return f"connected: {', '.join(serials)}" if serials else "none is connected (adb devices lists none)"
