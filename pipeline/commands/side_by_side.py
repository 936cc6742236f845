"""Files timed side by side: opened and timed in one process of their own, which a runtime may die in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.files import parts
from edgewise.files.isolated import call_remotely
from edgewise.files.open import open_runtime, refuse_without_runtime
from edgewise.images.preprocess import Fed, blank_image
from edgewise.images.sizes import Size, show_size
from edgewise.measure import statistics
from edgewise.measure.latency import Interleaved, measure
from edgewise.measure.speed import speed_verdict
from edgewise.targets import Runner, TellsInput
from edgewise.verify import card, manifest
from edgewise.verify.held import hold_copy


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One file's time; the ratio is to the first file's in the same run, with as many threads and images."""

    artifact: str
    target: str
    threads: int
    batch: int
    """Images of one call; a file of one image takes them one after the other."""
    p50_ms: float
    """Of a call."""
    p90_ms: float
    images_per_s: float
    """By the median."""
    ratio_to_first: float
    ci95: tuple[float, float]
    speed: str
    """faster, slower, or cannot tell; of the first file: cannot tell."""
    fastest: bool
    """Whether no other file is faster, as far as that can be told."""
    remarks: tuple[str, ...] = ()
    """What the machine did meanwhile."""
    trusted: bool = True
    """Whether the file is what its card's run wrote; nothing vouches for one without a card."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self) | {"ci95": list(self.ci95), "remarks": list(self.remarks)}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that is to be timed."""

    path: Path
    file: Path
    """What is opened: the very bytes that were held against the digests; of a file without a card itself."""
    target: str
    images: tuple[Tensor, ...]
    """What it may be fed, [1, …]: the first that it takes. Empty: what its runtime says that it takes."""
    trusted: bool
    """Whether it is what its card's run wrote; a file without a card is opened all the same, in a process of its own."""


def compare_speed(
    paths: Sequence[Path],
    threads: Sequence[int],
    seconds: float,
    size: Size | None = None,
    batches: Sequence[int] = (1,),
) -> list[Timing]:
    """Time the files against each other, for about ``seconds`` at each count of threads and each batch, on images as each
    is fed.

    They are opened and timed in one process for each count of threads. ``size``: height and width of the images; None:
    those that each file was judged on, or says that it takes. Raises RequestError for files that cannot be run here,
    EvidenceError for one that is not what its card's run wrote, CrashError where a runtime dies of one.
    """
    if min(threads, default=0) < 1 or not 0 < seconds < float("inf"):
        requested_threads = " ".join(map(str, threads)) or "none"
        raise RequestError(f"wanted at least 1 thread and a positive time, found {requested_threads} and {seconds:g} s")
    if min(batches, default=0) < 1 or max(batches) > _MOST_IMAGES:
        raise RequestError(
            f"--batch: wanted 1 to {_MOST_IMAGES:,} images, found {' '.join(map(str, batches)) or 'none'}"
        )
    rows = []
    with ExitStack() as copies:
        subjects = list({path: _open_subject(path, size, copies) for path in paths}.values())
        for count in dict.fromkeys(threads):
            with call_remotely(_Timer, count, what="timing") as timer:
                for subject in subjects:
                    timer(subject)
                for batch in dict.fromkeys(batches):
                    rows += _timings_of(subjects, timer((seconds, batch)), count, batch)
    return rows


_MOST_IMAGES = 4096
"""Of one call."""


def _timings_of(subjects: Sequence[Subject], measurement: Interleaved, threads: int, batch: int) -> list[Timing]:
    """Each file's time of one run of all of them."""
    samples = measurement.samples
    first, best = (samples[str(subject.path)] for subject in (subjects[0], _quickest_subject(subjects, measurement)))
    rows = []
    for subject in subjects:
        mine, conditions = samples[str(subject.path)], measurement.conditions(str(subject.path))
        ratio, interval = statistics.ratio_interval(mine.blocks, first.blocks)
        beyond = statistics.ratio_interval(mine.blocks, best.blocks)[1]
        rows.append(
            Timing(
                artifact=str(subject.path),
                target=subject.target,
                threads=threads,
                batch=batch,
                p50_ms=mine.percentile(50),
                p90_ms=mine.percentile(90),
                images_per_s=1000 * batch / mine.percentile(50),
                ratio_to_first=ratio,
                ci95=interval,
                speed=speed_verdict(interval, conditions),
                fastest=speed_verdict(beyond, conditions) != "slower",
                remarks=conditions.remarks,
                trusted=subject.trusted,
            )
        )
    return rows


def _quickest_subject(subjects: Sequence[Subject], measurement: Interleaved) -> Subject:
    return min(subjects, key=lambda subject: measurement.samples[str(subject.path)].percentile(50))


class _Timer:
    """In the process that times: given a file it opens it, given seconds and a batch it times all that were opened."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.opened: dict[str, tuple[Runner, Tensor]] = {}

    def __call__(self, given: Subject | tuple[float, int]) -> Interleaved | None:
        if not isinstance(given, Subject):
            seconds, batch = given
            calls = {
                name: partial(runner, image.repeat(batch, *[1] * (image.dim() - 1)))
                for name, (runner, image) in self.opened.items()
            }
            return measure(calls, seconds=seconds, threads=self.threads)
        runner = open_runtime(targets.get(given.target), given.file, self.threads)
        self.opened[str(given.path)] = runner, _accepted_image(given, runner)
        return None


def _accepted_image(subject: Subject, runner: Runner) -> Tensor:
    """The first of the images that a file takes. Raises RequestError where it takes none."""
    images = subject.images or (_blank_input(subject.path, runner),)
    refusals: list[str] = []
    for image in images:
        try:
            runner(image)
        except Exception as error:
            refusals += str(error).splitlines()[:1]
        else:
            return image
    shapes = ", ".join("×".join(map(str, image.shape)) for image in images)
    raise RequestError(f"{subject.path} takes no image of {shapes}: {'; '.join(dict.fromkeys(refusals))[:300]}")


def _blank_input(path: Path, runner: Runner) -> Tensor:
    """A blank input [1, …] as the file itself says that it takes one."""
    sides, kind = runner.takes if isinstance(runner, TellsInput) else ((), "")
    types = {"float": torch.float32, "half": torch.float16, "uint8": torch.uint8}
    if kind not in types or not sides:
        raise RequestError(
            f"{path} has no card, and its runtime does not say what images it takes; give --input-size H W"
        )
    if None in sides[1:]:
        raise RequestError(f"{path} has no card and takes images of several sizes; give one with --input-size H W")
    return torch.zeros(1, *(side for side in sides[1:] if side is not None), dtype=types[kind])


def _open_subject(path: Path, size: Size | None, copies: ExitStack) -> Subject:
    """A file as it is timed; its copy lasts as long as ``copies``."""
    if not parts.is_artifact(path):
        raise RequestError(f"there is no file {path}" if not path.exists() else f"{path} is no regular file")
    if not card.path_of(path).exists():
        return _open_without_card(path, size)
    manifest.require_whole(path)
    copy = copies.enter_context(hold_copy(path))
    read_card = card.read(copy)
    side = size or read_card.input_shape[1:]
    if not read_card.takes(side):
        raise RequestError(f"{path} was written for other image sizes than {show_size(side)}; its card names them")
    refuse_without_runtime(targets.get(read_card.target), path)
    image = blank_image((read_card.input_shape[0], *side), read_card.fed)
    return Subject(path=path, file=copy, target=read_card.target, images=(image,), trusted=True)


def _open_without_card(path: Path, size: Size | None) -> Subject:
    """A file that no card says anything of: its target by its suffix, its images by ``size`` or by what it says."""
    for name in ("onnx", "xnnpack", *targets.names()):
        target = targets.get(name) if name in _by_suffix(path.suffix) else None
        if target is not None and target.load is not None:
            kinds: tuple[Fed, ...] = get_args(Fed)
            pairs = [(channels, encoding) for encoding in kinds for channels in (3, 1)] if size else []
            images = tuple(blank_image((channels, *size), encoding) for channels, encoding in pairs) if size else ()
            return Subject(path=path, file=path, target=name, images=images, trusted=False)
    raise RequestError(
        f"{path}: no runtime on this machine reads {path.suffix or 'such'} files, so it has no time here"
    )


def _by_suffix(suffix: str) -> list[str]:
    """Targets that write files of a suffix, as far as their backends are installed."""
    files = []
    for name in targets.names():
        with contextlib.suppress(targets.MissingBackend):
            if targets.get(name).suffix == suffix:
                files.append(name)
    return files


def profile_files(paths: Sequence[Path], threads: int) -> dict[str, dict[str, float]]:
    """File -> operator -> milliseconds of one call, by the profiler of the file's own runtime, in a process of its own.

    Raises RequestError for files that cannot be run here, or whose runtime has no profiler, TargetError
    where the installed runtime's profiler records nothing, CrashError where it dies of a file.
    """
    profiles = {}
    for path in paths:
        with ExitStack() as copies:
            subject = _open_subject(path, None, copies)
            if targets.get(subject.target).profile is None:
                raise RequestError(
                    f"{path}: the runtime of {subject.target} tells no time by operator; leave --profile out for it"
                )
            with call_remotely(_Profiler, threads, what=f"profiling {path}") as profiler:
                profiles[str(path)] = profiler(subject)
    return profiles


class _Profiler:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, subject: Subject) -> dict[str, float]:
        profile = targets.get(subject.target).profile
        assert profile is not None
        image = subject.images[0] if subject.images else _blank_of(subject)
        return dict(profile(subject.file, image, self.threads))


def _blank_of(subject: Subject) -> Tensor:
    return _blank_input(subject.path, open_runtime(targets.get(subject.target), subject.file))
