"""This machine as a device."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from edgewise.device.link import Raw, call


@dataclass(frozen=True)
class Local:
    """``local``: commands run in this machine's own shell."""

    folder: str = tempfile.gettempdir()
    name: str = "local"
    host: str = "local"

    def send(self, line: str, given: bytes, seconds: float) -> Raw:
        """As ``Link``."""
        return call(["/bin/sh", "-c", line], given, seconds, self.name)

    def close(self) -> None:
        """As ``Link``."""
