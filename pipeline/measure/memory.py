"""What a written file costs a process that does nothing else: memory, time to load, time to its first answer."""

from __future__ import annotations

import contextlib
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from edgewise.errors import LoweringError
from edgewise.files import workers
from edgewise.images.preprocess import Fed


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What a fresh process pays for a file, its libraries aside."""

    peak_bytes: int | None
    load_ms: float
    """To load the file."""
    first_call_ms: float
    """To its first answer after that."""


def measure_peak(target: str, path: Path, threads: int, shape: tuple[int, int, int], fed: Fed) -> int | None:
    """Bytes by which a fresh process grows while ``target``'s runtime loads the file and answers one image.

    That is the high-water mark of its resident set (Linux: VmHWM; macOS: ru_maxrss) after the answer, minus the same
    before: the interpreter, the libraries and the image are there by then, so they are not counted; the file's pages, its
    weights as the runtime lays them out and its activations are, and whatever the runtime brings in for its first file.
    On Linux the mark is first set back to the memory in use; on macOS it cannot be, and what importing took for a moment
    can hide some of the growth. ``shape``: channels, height and width; ``fed``: what the file is fed.

    None where the system tells no such mark. Raises TargetError for a file that the runtime cannot read and LoweringError
    where the process died.
    """
    return cold_start(target, path, threads, shape, fed).peak_bytes


def cold_start(target: str, path: Path, threads: int, shape: tuple[int, int, int], fed: Fed) -> ColdStart:
    """What a fresh process takes to load ``target``'s file and to answer its first image, and its memory as ``peak`` has it.

    The libraries are there by then, and the file lies in the system's cache: what is timed is the runtime's own work.
    """
    with workers.start_workers(1) as pool:
        try:
            return pool.submit(_measure_growth, target, path, threads, shape, fed).result()
        except BrokenProcessPool as error:
            raise LoweringError(
                f"{target}: the process that measured the memory of {path.name} died (out of memory, or a runtime's crash)"
            ) from error


def _measure_growth(target: str, path: Path, threads: int, shape: tuple[int, int, int], fed: Fed) -> ColdStart:
    """To be called in a fresh process."""
    from edgewise import targets
    from edgewise.images.preprocess import blank_image

    load = targets.get(target).load
    assert load is not None
    image = blank_image(shape, fed)
    # However it is refused, a file that is not there has brought in the runtime's libraries and its pool.
    with contextlib.suppress(Exception):
        load(path.with_name(f"no {path.name}"), threads)
    _set_back()
    before, start = high_water(), time.perf_counter()
    runner = load(path, threads)
    load_end = time.perf_counter()
    runner(image)
    answer_end, after = time.perf_counter(), high_water()
    return ColdStart(
        peak_bytes=None if before is None or after is None else after - before,
        load_ms=1000 * (load_end - start),
        first_call_ms=1000 * (answer_end - load_end),
    )


def _set_back() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def high_water() -> int | None:
    """The most main memory that this process has held, in bytes; None where the system does not tell."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss on Linux: there it starts from that of the process that started this one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
