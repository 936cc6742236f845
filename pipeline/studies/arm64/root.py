"""An arm64 Debian in a folder, by debootstrap: made once, run by qemu's user emulation.

The packages are unpacked and not configured, since configuring runs Arm programs, for which a machine needs the kernel's
binfmt_misc; Python and onnxruntime's wheel run as they are unpacked, and it takes a minute.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgewise.errors import EdgewiseError
from edgewise.targets import MissingBackend

SUITE, PYTHON = "bookworm", "3.11"
"""The Debian release and the Python it has; wheels are fetched for that one."""
MIRROR = "http://deb.debian.org/debian"
_EMULATOR = "qemu-aarch64-static"
_TOOLS = {"debootstrap": "debootstrap", _EMULATOR: "qemu-user-static", "dpkg-deb": "dpkg", "chroot": "coreutils"}
_WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_PACKAGES = "opt/python"


class EmulationError(EdgewiseError):
    """The Arm system could not be made, or a program in it failed."""


@dataclass(frozen=True)
class Root:
    """A finished Arm system."""

    path: Path

    def command(self, cpu: str, *arguments: str) -> list[str]:
        """The command that runs Python in it on an emulated processor, for example ``cortex-a53``."""
        prefix = ["chroot", str(self.path), f"/usr/bin/{_EMULATOR}", "-cpu", cpu]
        return [*prefix, "-E", f"PYTHONPATH=/{_PACKAGES}", f"/usr/bin/python{PYTHON}", *arguments]

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder inside, gone afterwards."""
        place = self.path / "work"
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            yield Path(folder)


def check() -> None:
    """Raise MissingBackend, with the line that helps, where this machine cannot make or enter such a system."""
    missing = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise MissingBackend(
            f"emulating Arm needs {', '.join(sorted(missing))}, which is not installed. On Debian or Ubuntu, install it "
            f"with: sudo apt-get install --no-install-recommends {' '.join(sorted(missing))} debian-archive-keyring"
        )
    if os.geteuid() != 0:
        raise MissingBackend(
            "emulating Arm needs the rights of root (debootstrap and chroot do); run the same command with sudo, or in "
            "a container"
        )


def versions() -> dict[str, str]:
    """The packages put into the system beside Debian's: as installed here, so that files run in the same runtime."""
    return {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy")}


def emulator() -> str:
    """The emulator and its version, in its own words."""
    version = subprocess.run([_EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout
    return version.splitlines()[0]


def build(place: Path, mirror: str, say: Callable[[str], None]) -> Root:
    """The system in ``place``; made there, whole or not at all, where it is not yet. Raises EmulationError."""
    packages = versions()
    path = place / f"{SUITE}-{'-'.join(f'{name}{version}' for name, version in packages.items())}"
    if path.is_dir():
        return Root(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    say(f"fetching an arm64 {SUITE} into {path}")
    _install_debian(partial, mirror)
    say(f"fetching {', '.join(f'{name} {version}' for name, version in packages.items())} for arm64")
    _install_wheels(partial, packages)
    program = shutil.which(_EMULATOR)
    assert program is not None
    shutil.copy2(program, partial / "usr/bin" / _EMULATOR)
    partial.rename(path)
    return Root(path)


def _install_debian(folder: Path, mirror: str) -> None:
    include = f"--include=python{PYTHON},libstdc++6"
    options = ("--arch=arm64", "--variant=minbase", "--foreign", "--force-check-gpg", include)
    _run_command("debootstrap", *options, SUITE, str(folder), mirror)
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        _run_command("dpkg-deb", "--extract", str(package), str(folder))
        package.unlink()


def _install_wheels(folder: Path, packages: dict[str, str]) -> None:
    platforms = [part for name in _WHEELS for part in ("--platform", name)]
    place = ("--target", str(folder / _PACKAGES), "--python-version", PYTHON, "--only-binary=:all:", "--quiet")
    exact = [f"{name}=={version}" for name, version in packages.items()]
    _run_command(sys.executable, "-m", "pip", "install", *place, *platforms, *exact)


def _run_command(*command: str) -> None:
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if process.returncode:
        raise EmulationError(f"{command[0]} ended with status {process.returncode}: {_last_lines(process.stdout)}")


def _last_lines(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def run(root: Root, cpu: str, *arguments: str) -> Iterator[str]:
    """Run Python inside and yield each line it prints. Raises EmulationError, with what it said, when it fails."""
    command = root.command(cpu, *arguments)
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace")
        assert process.stdout is not None
        try:
            yield from map(str.strip, process.stdout)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status:
            complaints.seek(0)
            raise EmulationError(f"on the emulated {cpu}, status {status}: {_last_lines(complaints.read())}")
