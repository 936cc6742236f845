"""A program that measures a bundle's ExecuTorch files on a device without Python: ``native/program.cpp``, compiled for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.device.link import DeviceError
from edgewise.errors import RequestError

TARGETS = ("xnnpack",)
"""Whose files it runs."""
_MACHINES = {
    3: ("i686", "i386", "x86_64", "amd64"),
    40: ("armv7l", "armv8l", "aarch64", "arm64"),
    62: ("x86_64", "amd64"),
    183: ("aarch64", "arm64"),
    243: ("riscv64",),
}
"""ELF's number of an architecture -> what devices that may run its programs call themselves, its own name first."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and what it was compiled for."""

    path: Path
    content: bytes

    @property
    def name(self) -> str:
        """Its file's on the device: another for another program."""
        return f"edgewise-native-{hashlib.sha256(self.content).hexdigest()[:16]}"

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def check(self, machine: str, where: str, targets: Sequence[str]) -> None:
        """Raise DeviceError for a program of another architecture than the device's ``machine``, RequestError for a bundle
        that has no file which it runs."""
        if not set(targets) & set(TARGETS):
            raise RequestError(
                f"--native runs files for {', '.join(TARGETS)} alone, and the bundle has none: run the recipe with --target "
                f"{TARGETS[0]} and write it again"
            )
        names = _MACHINES.get(self._architecture(), ())
        if names and machine and machine.lower() not in names:
            raise DeviceError(
                f"{self.path} was compiled for {names[0]}, and {where} is {machine}: compile it for that one"
            )

    def _architecture(self) -> int:
        """ELF's number of it; 0 for a script."""
        return int.from_bytes(self.content[18:20], "little") if self.content.startswith(b"\x7fELF") else 0


def read(path: Path) -> Program:
    """The program in a file. Raises RequestError for what is no program for such devices."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"--native: cannot read {path}: {error.strerror}") from error
    if not content.startswith((b"\x7fELF", b"#!")):
        raise RequestError(
            f"--native: wanted a program for Linux or Android (ELF), or a script, found neither in {path}"
        )
    return Program(path=path, content=content)
