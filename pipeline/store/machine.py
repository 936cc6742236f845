"""What a measured time belongs to: machine, interpreter, package versions, state of the source tree."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "torch", "torchao", "lightning-fabric", "numpy", "scipy", "scikit-learn", "statsmodels", "pillow",
    "safetensors", "onnx", "onnxscript", "onnxruntime", "executorch", "coremltools", "ethos-u-vela", "tosa-tools", "nncf",
    "litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer",
)  # fmt: skip


def read_environment(threads: int | None = None, root: Path = _ROOT) -> dict[str, Any]:
    """The entry ``read_environment`` of a report.

    ``threads``: how many the measurements used; the cores this process may use where it is not given. ``commit`` is
    that of the source tree at ``root``, ``dirty`` whether files differ from it; both None outside a git checkout.
    Versions are those of installed packages, read without importing any.
    """
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    cores = _cores()
    return {
        "python": platform.python_version(),
        "torch": versions.get("torch"),
        "cpu": cpu_name(),
        "threads": cores if threads is None else threads,
        "cores": cores,
        "platform": platform.platform(),
        **_read_commit(root),
        "packages": versions,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor as its maker calls it, else the architecture: ``x86_64``, ``aarch64``, ..."""
    if platform.system() == "Darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        # x86 kernels tell the model in cpuinfo; boards tell theirs in the device tree.
        info = re.search(r"^model name\s*:\s*(.+)$", _read_text("/proc/cpuinfo"), re.MULTILINE)
        name = info.group(1) if info else _read_text("/proc/device-tree/model").strip("\0\n ")
    return name or platform.processor() or platform.machine()


def emulator_name() -> str:
    """What emulates this processor; empty on a real one.

    Who starts an emulator may name it in EDGEWISE_EMULATED. Unsaid, an Arm program that reads an x86 processor's cpuinfo
    is emulated: that file is the host kernel's, so that a processor's name alone tells nothing there.
    """
    name = os.environ.get("EDGEWISE_EMULATED", "")
    foreign = platform.machine().lower() in ("aarch64", "arm64") and "vendor_id" in _read_text("/proc/cpuinfo")
    return name or ("an emulator that it does not name" if foreign else "")


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What the command prints, stripped; empty where it is missing, fails or takes more than ten seconds."""
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.strip()


def _read_commit(root: Path) -> dict[str, str | bool | None]:
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    commit = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    # A copy of this tree inside somebody else's checkout must not report that checkout's commit.
    if not commit or not top or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_output("git", "-C", str(root), "status", "--porcelain"))}


def machine_name() -> str:
    """What a measured time belongs to."""
    return f"{platform.machine()} {cpu_name()}"
