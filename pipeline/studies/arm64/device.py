"""A bundle on emulated Arm processors, as on any board behind SSH: ``python -m edgewise.studies.arm64.device BUNDLE``.

The Arm system of ``root`` is put behind an SSH server of this machine's loopback, with keys and a configuration of its
own; the harness reaches it as it reaches a board. Its times are an emulator's, are marked so and never rank.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.commands.console import FAILED, PASSED, print_note, run_guarded
from edgewise.device.runner.native import VARIABLE
from edgewise.studies.arm64 import native, root
from edgewise.studies.arm64.root import MIRROR, PYTHON, EmulationError, Root, build
from edgewise.targets import MissingBackend

if TYPE_CHECKING:
    from edgewise.device.bench import Request
    from edgewise.device.bundle import Bundle
    from edgewise.report.devices import DeviceRow

_APPLETS = "usr/local/lib/edgewise"
"""Where in the Arm system this machine's own shell and tools lie: starting Arm programs by name needs the kernel's help."""

_PYTHON3 = """#!/{applets}/sh
exec /usr/bin/qemu-aarch64-static -cpu {cpu} -E PYTHONPATH=/opt/python -E EDGEWISE_EMULATED='qemu-user {cpu}' {more}\\
  /usr/bin/python{python} "$@"
"""

_PROGRAM = """#!/{applets}/sh
exec /usr/bin/qemu-aarch64-static -cpu {cpu} -E EDGEWISE_EMULATED='qemu-user {cpu}' -E LD_LIBRARY_PATH={folder} \\
  {folder}/{program} "$@"
"""
"""What is sent as the program for a device without Python: the kernel cannot start the compiled one, which lies there."""

_ENTER = """#!/bin/sh
PATH=$PATH:/usr/sbin:/sbin
exec unshare -m /bin/sh -c 'mount -t proc none "$0/proc" && mount --bind /dev "$0/dev" && cd / && \\
  exec chroot "$0" /{applets}/env -i PATH=/{applets} HOME=/tmp /{applets}/sh -c "$1"' {root} "$SSH_ORIGINAL_COMMAND"
"""


def check_tools() -> tuple[str, str]:
    """The SSH server and busybox. Raises MissingBackend, with the line that installs what is missing."""
    root.check()
    tools = {"sshd": shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin"), "busybox": shutil.which("busybox")}
    missing = {"sshd": "openssh-server", "busybox": "busybox-static"}
    absent = [package for tool, package in missing.items() if tools[tool] is None]
    if absent:
        raise MissingBackend(
            f"an Arm device behind SSH needs {', '.join(absent)}: sudo apt-get install {' '.join(absent)}"
        )
    return str(tools["sshd"]), str(tools["busybox"])


def furnish_system(system: Root, busybox: str, cpu: str, executorch: str | None = None) -> None:
    """Give the Arm system a shell, tools, and a ``python3`` that runs on the emulated ``cpu``.

    ``executorch``: the folder in it that holds ExecuTorch's runtime.
    """
    folder = system.path / _APPLETS
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(busybox, folder / "busybox")
    subprocess.run([folder / "busybox", "--install", "-s", folder], check=True, capture_output=True)
    for link in folder.iterdir():
        if link.is_symlink():
            link.unlink()
            link.symlink_to("busybox")
    program = folder / "python3"
    more = f"-E {VARIABLE}={executorch} -E LD_LIBRARY_PATH={executorch} " if executorch else ""
    program.write_text(_PYTHON3.format(applets=_APPLETS, cpu=cpu, python=PYTHON, more=more), encoding="ascii")
    program.chmod(0o755)
    for place in ("proc", "dev", "tmp", "sys/devices/system/cpu"):
        (system.path / place).mkdir(parents=True, exist_ok=True)
    # Two files by which the runtimes count processors; without them XNNPACK refuses every file.
    for place in ("possible", "present"):
        (system.path / "sys/devices/system/cpu" / place).write_text("0-1\n", encoding="ascii")


@contextmanager
def serve_system(system: Root, sshd: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The system behind an SSH server on loopback; gives its address and the client's options."""
    with tempfile.TemporaryDirectory(prefix="edgewise-sshd-") as name:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        _configure_sshd(folder, system, port)
        Path("/run/sshd").mkdir(exist_ok=True)
        process = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            files = (f"IdentityFile={folder}/user", f"UserKnownHostsFile={folder}/known", "IdentitiesOnly=yes")
            yield f"ssh://root@127.0.0.1:{port}", ("-F", "none", *(part for word in files for part in ("-o", word)))
        finally:
            process.terminate()
            process.wait()


def _configure_sshd(folder: Path, system: Root, port: int) -> None:
    enter = folder / "enter"
    enter.write_text(_ENTER.format(applets=_APPLETS, root=system.path.resolve()), encoding="utf-8")
    enter.chmod(0o755)
    lines = (
        f"ListenAddress 127.0.0.1:{port}", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/user.pub",
        "StrictModes no", "UsePAM no", "PasswordAuthentication no", "PidFile none", f"ForceCommand {enter}",
        "PermitRootLogin prohibit-password",
    )  # fmt: skip
    (folder / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kind, value = (folder / "host.pub").read_text(encoding="ascii").split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {value}\n", encoding="ascii")


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise EmulationError(f"the SSH server ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise EmulationError("the SSH server does not listen")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status, as ``edgewise`` has them."""
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.arm64.device",
        description="Measures a bundle's ONNX and ExecuTorch files on emulated 64-bit Arm processors behind SSH.",
        epilog="Needs root, debootstrap, qemu-user-static, busybox-static, openssh-server and, for ExecuTorch's files, "
        "g++-aarch64-linux-gnu.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE.pyz")
    parser.add_argument(
        "--cpu", action="append", metavar="C", help="as qemu calls it (default: cortex-a53, cortex-a76)"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/arm64-root"), metavar="DIR", help="of the Arm system")
    parser.add_argument("--mirror", default=MIRROR, metavar="URL", help="of Debian's packages")
    parser.add_argument("--brief", type=float, default=2.0, metavar="S", help="seconds of each file (default 2)")
    options = parser.parse_args(arguments)
    return run_guarded(lambda: _run_bench(options))


def _run_bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgewise.device import bench, bundle
    from edgewise.device.bench import Request
    from edgewise.report.terminal import device_table

    sshd, busybox = check_tools()
    bundle_file = bundle.read(options.bundle)
    system = build(options.root, options.mirror, print_note)
    there = [file for file in bundle_file.manifest.files if file.target in ("onnx", "ort", "xnnpack")]
    only = tuple(file.name for file in there)
    if any(file.target == "xnnpack" for file in there):
        native.check()
        executorch = native.build(system, print_note)
    else:
        executorch = None
    rows: list[DeviceRow] = []
    with serve_system(system, sshd) as (address, ssh_options):
        request = Request(mode=("--brief", f"{options.brief:g}"), only=only, ssh_options=ssh_options)
        for cpu in options.cpu or ("cortex-a53", "cortex-a76"):
            furnish_system(system, busybox, cpu, executorch)
            rows += _bench_once(bundle_file, address, request, f"qemu-{cpu}")
            if executorch is not None:
                rows += _bench_program(bundle_file, address, request, cpu, executorch)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(device_table(rows))
    for row in rows:
        print(f"{row.device}, {row.file}: {row.reason}")
    return FAILED if bench.has_failures(rows) else PASSED


def _bench_once(bundle_file: Bundle, address: str, request: Request, name: str) -> tuple[DeviceRow, ...]:
    from edgewise.device import bench

    link = bench.connect(address, request)
    try:
        return bench.measure(bundle_file, link, request, print_note, name).rows
    finally:
        link.close()


def _bench_program(
    bundle_file: Bundle, address: str, request: Request, cpu: str, executorch: str
) -> tuple[DeviceRow, ...]:
    """ExecuTorch's files once more, by the compiled program, as on a device without Python."""
    only = tuple(file.name for file in bundle_file.manifest.files if file.target == "xnnpack")
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        script = Path(folder) / "edgewise_native"
        text = _PROGRAM.format(applets=_APPLETS, cpu=cpu, folder=executorch, program=native.PROGRAM)
        script.write_text(text, encoding="ascii")
        return _bench_once(bundle_file, address, replace(request, native=script, only=only), f"qemu-{cpu}-program")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
