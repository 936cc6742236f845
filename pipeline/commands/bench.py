"""``edgewise bench``: latency of written files side by side, interleaved in one run; or a bundle on a device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import targets
from edgewise.commands import on_device
from edgewise.commands.console import PASSED, add_command, print_json, size_of
from edgewise.errors import RequestError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from edgewise.images.sizes import Size
    from edgewise.targets import Runner


def add_parser(commands: Any) -> None:
    """``bench ARTIFACT ...``."""
    parser = add_command(commands, "bench", "interleaved latency of files, side by side", bench)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to measure (default 10)")
    parser.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="a size that the files accept (default: judged at)"
    )
    parser.add_argument("--profile", action="store_true", help="time by operator instead, where the runtime tells")
    parser.add_argument(
        "--device", metavar="AT", help="measure a bundle on local, ssh://[user@]host[:port], adb://SERIAL or web://"
    )
    parser.add_argument("--name", metavar="NAME", help="what to call the device in the report (default: its address)")
    on_device.add_options(parser.add_argument_group("with --device"))


def bench(options: argparse.Namespace) -> int:
    """Print the files' times, or with ``--profile`` the operators' of each."""
    from edgewise.library_noise import quieten

    quieten()
    if options.device is not None:
        return on_device.bench_on_device(options)
    if options.profile:
        return print_profile(options)
    found = compare(options.artifacts, options.threads, options.seconds, size_of(options))
    if options.json:
        print_json({"files": [entry.to_json() for entry in found]})
        return PASSED
    from rich.console import Console

    Console(highlight=False).print(table(found))
    return PASSED


def print_profile(options: argparse.Namespace) -> int:
    """Print where the time of each file goes, by operator."""
    found = profile_files(options.artifacts, options.threads)
    if options.json:
        print_json({"profiles": found})
        return PASSED
    for path, times in found.items():
        print(f"{path}: {sum(times.values()):.3f} ms in its operators")
        for operator, time in times.items():
            print(f"  {operator:24} {time:8.4f} ms  {time / sum(times.values()):6.1%}")
    return PASSED


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One file's time; the ratio is to the first file's in the same run."""

    artifact: str
    target: str
    threads: int
    batch: int
    p50_ms: float
    p90_ms: float
    ratio_to_first: float
    ci95: tuple[float, float]
    speed: str
    """faster, slower, or cannot tell; of the first file: cannot tell."""
    remarks: tuple[str, ...] = ()
    """What the machine did meanwhile."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self) | {"ci95": list(self.ci95), "remarks": list(self.remarks)}


def compare(paths: Sequence[Path], threads: int, seconds: float, size: Size | None = None) -> list[Timing]:
    """Time the files against each other at batch 1 for about ``seconds``, on images as each is fed.

    ``size``: height and width of the images; None: those that each file was judged on.

    Raises RequestError for files that cannot be run here or have no card.
    """
    from edgewise.measure import statistics
    from edgewise.measure.latency import measure
    from edgewise.measure.speed import speed

    if threads < 1 or not 0 < seconds < float("inf"):
        raise RequestError(f"wanted at least 1 thread and a positive time, found {threads} and {seconds:g} s")
    opened = {str(path): _open(path, threads, size) for path in paths}
    calls = {name: partial(runner, image) for name, (_, runner, image) in opened.items()}
    found = measure(calls, seconds=seconds, threads=threads)
    first = found.samples[str(paths[0])]
    rows = []
    for name, (target, _, _) in opened.items():
        mine, conditions = found.samples[name], found.conditions(name)
        ratio, interval = statistics.ratio_interval(mine.blocks, first.blocks)
        rows.append(
            Timing(
                artifact=name,
                target=target,
                threads=threads,
                batch=1,
                p50_ms=mine.percentile(50),
                p90_ms=mine.percentile(90),
                ratio_to_first=ratio,
                ci95=interval,
                speed=speed(interval, conditions),
                remarks=conditions.remarks,
            )
        )
    return rows


def _open(path: Path, threads: int, size: Size | None) -> tuple[str, Runner, Tensor]:
    from edgewise.files.open import open_runtime
    from edgewise.images.preprocess import blank_image
    from edgewise.images.sizes import show_size
    from edgewise.verify import card

    if not path.exists():
        raise RequestError(f"there is no file {path}")
    kept = card.read(path)
    side = size or kept.input_shape[1:]
    if not kept.takes(side):
        raise RequestError(f"{path} was written for other image sizes than {show_size(side)}; its card names them")
    target = targets.get(kept.target)
    return target.name, open_runtime(target, path, threads), blank_image((kept.input_shape[0], *side), kept.fed)


def profile_files(paths: Sequence[Path], threads: int) -> dict[str, dict[str, float]]:
    """File -> operator -> milliseconds of one call, by the profiler of the file's own runtime.

    Raises RequestError for files that cannot be run here, have no card, or whose runtime has no profiler, TargetError
    where the installed runtime's profiler records nothing.
    """
    found = {}
    for path in paths:
        name, _, image = _open(path, threads, None)
        profile = targets.get(name).profile
        if profile is None:
            raise RequestError(f"{path}: the runtime of {name} tells no time by operator; leave --profile out for it")
        found[str(path)] = dict(profile(path, image, threads))
    return found


def table(timings: Sequence[Timing]) -> Table:
    """A Rich table, the first file as the measure of the others."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD)
    for title in ("file", "on", "threads", "p50 ms", "p90 ms", "ratio", "95 % interval", ""):
        shown.add_column(title, justify="left" if title in ("file", "on", "") else "right", no_wrap=title != "file")
    for entry in timings:
        low, high = entry.ci95
        shown.add_row(
            entry.artifact,
            entry.target,
            str(entry.threads),
            f"{entry.p50_ms:.3g}",
            f"{entry.p90_ms:.3g}",
            f"{entry.ratio_to_first:.2f}",
            f"{low:.2f} to {high:.2f}",
            "" if entry is timings[0] else entry.speed,
        )
    if remarks := dict.fromkeys(f"{entry.artifact}: {remark}" for entry in timings for remark in entry.remarks):
        shown.caption = "\n".join(remarks)
    return shown
