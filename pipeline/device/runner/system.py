"""What the device tells about itself: processor, memory, clock, temperature. None for what it does not tell."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CPUS = "/sys/devices/system/cpu"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def describe() -> dict[str, Any]:
    """The device."""
    uname = platform.uname()
    return {
        "name": uname.node,
        "model": _model(),
        "os": _system(),
        "kernel": uname.release,
        "machine": uname.machine,
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "emulated": emulator(),
    }


def _model() -> str:
    return _text("/proc/device-tree/model") or _command("getprop", "ro.product.model")


def _system() -> str:
    android = _command("getprop", "ro.build.version.release")
    if android:
        return f"Android {android}"
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text("/etc/os-release"), re.MULTILINE)
    return match.group(1) if match else f"{platform.system()} {platform.release()}"


def _command(*command: str) -> str:
    try:
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.decode(errors="replace").strip()


def cpu_name() -> str:
    """The processor as its maker calls it, else what identifies its cores, else the architecture."""
    if sys.platform == "darwin":
        return _command("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    info = _text("/proc/cpuinfo")
    for key in ("model name", "Hardware"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE)
        if match:
            return match.group(1)
    return _text("/proc/device-tree/model") or platform.processor() or platform.machine()


def cores() -> list[dict[str, Any]]:
    """Each processor this process may use: its number, its fastest clock and, on Arm, its part number."""
    parts: dict[int, str] = {}
    current = -1
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = (word.strip() for word in line.partition(":"))
        if key == "processor" and value.isdigit():
            current = int(value)
        elif key == "CPU part":
            parts[current] = value
    return [
        {"id": cpu, "max_khz": _number(f"{_CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq"), "part": parts.get(cpu)}
        for cpu in allowed()
    ]


def allowed() -> list[int]:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _memory() -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024
    size = _command("sysctl", "-n", "hw.memsize") if sys.platform == "darwin" else ""
    return int(size) if size.isdigit() else None


def emulator() -> str | None:
    """Which emulator this runs under; None on a real processor.

    Who starts an emulator says so in EDGEWISE_EMULATED. Unsaid, an Arm program that sees an x86 processor's cpuinfo, or
    none at all, is emulated: the file is then the host kernel's.
    """
    emulator_name = os.environ.get("EDGEWISE_EMULATED", "")
    if emulator_name:
        return emulator_name[:80]
    info = _text("/proc/cpuinfo")
    is_arm = platform.machine().lower() in ("aarch64", "arm64", "armv7l", "armv8l")
    if sys.platform == "linux" and is_arm and ("vendor_id" in info or "GenuineIntel" in info or not info):
        return "an emulator that it does not name"
    return None


def choose(pin: str | None, threads: int) -> list[int]:
    """The processors to be pinned to: ``big``, ``little`` (by speed), or numbers as 0,2-3; None: the fastest ones, each of
    a core of its own. Raises ValueError for a choice that the device does not have. Empty where it cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        if pin:
            raise ValueError(f"--pin {pin}: {platform.system()} cannot pin to processors; leave it out")
        return []
    have = allowed()
    if pin in ("big", "little"):
        return _of_speed(pin == "big", threads)
    if pin:
        cpus = _listed(pin)
        if not cpus or not set(cpus) <= set(have):
            raise ValueError(f"--pin {pin}: wanted some of this device's processors {have}, big or little")
        return cpus
    return _fastest_first(have)[:threads]


def speeds(cpus: Sequence[int]) -> dict[int, int]:
    """How fast each processor is beside the others: the kernel's measure of its capacity, else its fastest clock; empty
    where one of them does not tell."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        values = {cpu: value for cpu in cpus if (value := _number(f"{_CPUS}/cpu{cpu}/{name}")) is not None}
        if values and len(values) == len(cpus):
            return values
    return {}


def describe_choice(cpus: Sequence[int], have: Sequence[int]) -> str:
    """The processors that were chosen of those there are, for people: whether they are of the fastest, where they differ."""
    if not cpus:
        return "on processors that it cannot choose"
    text = f"on processor{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}"
    speed = speeds(have)
    if len(set(speed.values())) < 2:
        return text
    return f"{text}, {'of the fastest' if speed[cpus[0]] == max(speed.values()) else 'not of the fastest'}"


def _of_speed(big: bool, threads: int) -> list[int]:
    speed = speeds(allowed())
    if len(set(speed.values())) < 2:
        raise ValueError("--pin big or little: this device's processors do not differ in speed")
    wanted = max(speed.values()) if big else min(speed.values())
    return [cpu for cpu, value in speed.items() if value == wanted][:threads]


def _listed(text: str) -> list[int]:
    cpus: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            return []
        cpus += range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1)
    return cpus


def _fastest_first(have: Sequence[int]) -> list[int]:
    """Processors by speed, those that share a core with an earlier one last: a phone's first ones are its slow ones."""
    speed = speeds(have)

    def second(cpu: int) -> bool:
        siblings = _listed(_text(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list"))
        return any(other < cpu and other in have for other in siblings)

    return sorted(have, key=lambda cpu: (second(cpu), -speed.get(cpu, 0), cpu))


def clock_khz(cpus: Sequence[int]) -> int | None:
    """The mean clock of these processors now."""
    frequencies = [value for cpu in cpus if (value := _number(f"{_CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq"))]
    return sum(frequencies) // len(frequencies) if frequencies else None


def governor(cpus: Sequence[int]) -> str | None:
    """Who sets the clock of the first of these processors."""
    return (_text(f"{_CPUS}/cpu{cpus[0]}/cpufreq/scaling_governor") or None) if cpus else None


def temperature_c() -> float | None:
    """The hottest zone that the kernel tells, in degrees Celsius."""
    readings = [_number(f"{zone}/temp") for zone in Path("/sys/class/thermal").glob("thermal_zone*")]
    temperatures = [value / 1000 if value > 1000 else float(value) for value in readings if value is not None]
    sane = [value for value in temperatures if 0 < value < 150]
    return max(sane) if sane else None


def stolen() -> int | None:
    """Ticks that the host of a virtual machine took away so far."""
    words = _text("/proc/stat").split("\n")[0].split()
    return int(words[8]) if len(words) > 8 and words[8].isdigit() else None


def high_water() -> int | None:
    """The most main memory this process has held, in bytes."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


def set_back() -> None:
    """Set the high-water mark to the memory now in use, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
