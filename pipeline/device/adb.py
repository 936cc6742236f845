"""An Android device by the adb client: over USB or the network, in its shell's user and folder.

Its exit status is 0 on a cut line and on some devices always, so only what comes back in the output counts.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field

from edgewise.device.link import DeviceError, LinkLost, Raw, call
from edgewise.errors import RequestError
from edgewise.targets import MissingBackend

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_AWAY = re.compile(r"device offline|device '.*' not found|device not found|no devices/emulators found")
_SHY = re.compile(r"unauthorized|still authorizing")


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
        found = self._shell(line, given, seconds)
        if _AWAY.search(found.err) and ":" in self.serial:
            # A device on the network is forgotten with its connection.
            call(["adb", "connect", self.serial], b"", 20, self.name)
            found = self._shell(line, given, seconds)
        self._refuse(found.err)
        self._reached = True
        return found

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
        raise DeviceError(f"{self.name}: there is no such device; {_connected()}")

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


def _connected() -> str:
    listed = call(["adb", "devices"], b"", 20, "adb").out.decode(errors="replace").splitlines()[1:]
    serials = [line.split()[0] for line in listed if line.strip()]
    return f"connected: {', '.join(serials)}" if serials else "none is connected (adb devices lists none)"
