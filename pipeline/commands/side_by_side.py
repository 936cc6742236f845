"""Files timed side by side: opened and timed in one process of their own, which a runtime may die in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from edgewise import targets
from edgewise.errors import EvidenceError, RequestError
from edgewise.files import parts
from edgewise.files.isolated import remote
from edgewise.files.open import open_runtime, refuse_without_runtime
from edgewise.images.preprocess import Fed, blank_image
from edgewise.images.sizes import Size, show_size
from edgewise.measure import statistics
from edgewise.measure.latency import Interleaved, measure
from edgewise.measure.speed import speed
from edgewise.targets import Runner
from edgewise.verify import card, manifest


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
    trusted: bool = True
    """Whether the file is what its card's run wrote; nothing vouches for one without a card."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self) | {"ci95": list(self.ci95), "remarks": list(self.remarks)}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that is to be timed."""

    path: Path
    target: str
    images: tuple[Tensor, ...]
    """What it may be fed, [1, …]: the first that it takes."""
    trusted: bool
    """Whether it is what its card's run wrote; a file without a card is opened all the same, in a process of its own."""


def compare(paths: Sequence[Path], threads: int, seconds: float, size: Size | None = None) -> list[Timing]:
    """Time the files against each other at batch 1 for about ``seconds``, on images as each is fed.

    They are opened and timed in one process of their own. ``size``: height and width of the images; None: those that each
    file was judged on. Raises RequestError for files that cannot be run here, EvidenceError for one that is not what its
    card's run wrote, CrashError where a runtime dies of one.
    """
    if threads < 1 or not 0 < seconds < float("inf"):
        raise RequestError(f"wanted at least 1 thread and a positive time, found {threads} and {seconds:g} s")
    subjects = [_subject(path, size) for path in paths]
    with remote(_Timer, threads, what="timing") as timer:
        for subject in subjects:
            timer(subject)
        found = timer(seconds)
    first, rows = found.samples[str(paths[0])], []
    for subject in {str(subject.path): subject for subject in subjects}.values():
        mine, conditions = found.samples[str(subject.path)], found.conditions(str(subject.path))
        ratio, interval = statistics.ratio_interval(mine.blocks, first.blocks)
        rows.append(
            Timing(
                artifact=str(subject.path),
                target=subject.target,
                threads=threads,
                batch=1,
                p50_ms=mine.percentile(50),
                p90_ms=mine.percentile(90),
                ratio_to_first=ratio,
                ci95=interval,
                speed=speed(interval, conditions),
                remarks=conditions.remarks,
                trusted=subject.trusted,
            )
        )
    return rows


class _Timer:
    """In the process that times: given a file it opens it, given seconds it times all that were opened."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.calls: dict[str, Callable[[], object]] = {}

    def __call__(self, given: Subject | float) -> Interleaved | None:
        if not isinstance(given, Subject):
            return measure(self.calls, seconds=given, threads=self.threads)
        runner = open_runtime(targets.get(given.target), given.path, self.threads)
        self.calls[str(given.path)] = partial(runner, _taken(given, runner))
        return None


def _taken(subject: Subject, runner: Runner) -> Tensor:
    """The first of the images that a file takes. Raises RequestError where it takes none."""
    refusals: list[str] = []
    for image in subject.images:
        try:
            runner(image)
        except Exception as error:
            refusals += str(error).splitlines()[:1]
        else:
            return image
    shapes = ", ".join("×".join(map(str, image.shape)) for image in subject.images)
    raise RequestError(f"{subject.path} takes no image of {shapes}: {'; '.join(dict.fromkeys(refusals))[:300]}")


def _subject(path: Path, size: Size | None) -> Subject:
    if not parts.is_artifact(path):
        raise RequestError(f"there is no file {path}" if not path.exists() else f"{path} is no regular file")
    if not card.path_of(path).exists():
        return _untrusted(path, size)
    wrong = manifest.problems(path, manifest.read(path))
    if wrong:
        raise EvidenceError(f"{path} is not the file that was verified: {'; '.join(map(str, wrong))}")
    kept = card.read(path)
    side = size or kept.input_shape[1:]
    if not kept.takes(side):
        raise RequestError(f"{path} was written for other image sizes than {show_size(side)}; its card names them")
    refuse_without_runtime(targets.get(kept.target), path)
    image = blank_image((kept.input_shape[0], *side), kept.fed)
    return Subject(path=path, target=kept.target, images=(image,), trusted=True)


def _untrusted(path: Path, size: Size | None) -> Subject:
    """A file that no card says anything of: its target by its suffix, its images by what it takes."""
    if size is None:
        raise RequestError(
            f"{path} has no {card.path_of(path).name} beside it, so that it is untrusted and nobody says what it is fed; keep "
            "the two together, or give --input-size H W"
        )
    for name in ("onnx", "xnnpack", *targets.names()):
        target = targets.get(name) if name in _by_suffix(path.suffix) else None
        if target is not None and target.load is not None:
            kinds: tuple[Fed, ...] = ("normalised", "bytes")
            images = tuple(blank_image((channels, *size), fed) for fed in kinds for channels in (3, 1))
            return Subject(path=path, target=name, images=images, trusted=False)
    raise RequestError(
        f"{path}: no runtime on this machine reads {path.suffix or 'such'} files, so it has no time here"
    )


def _by_suffix(suffix: str) -> list[str]:
    """Targets that write files of a suffix, as far as their backends are installed."""
    found = []
    for name in targets.names():
        with contextlib.suppress(targets.MissingBackend):
            if targets.get(name).suffix == suffix:
                found.append(name)
    return found


def profile_files(paths: Sequence[Path], threads: int) -> dict[str, dict[str, float]]:
    """File -> operator -> milliseconds of one call, by the profiler of the file's own runtime, in a process of its own.

    Raises RequestError for files that cannot be run here, have no card, or whose runtime has no profiler, TargetError
    where the installed runtime's profiler records nothing, CrashError where it dies of a file.
    """
    found = {}
    for path in paths:
        subject = _subject(path, None)
        if targets.get(subject.target).profile is None:
            raise RequestError(
                f"{path}: the runtime of {subject.target} tells no time by operator; leave --profile out for it"
            )
        with remote(_Profiler, threads, what=f"profiling {path}") as profiler:
            found[str(path)] = profiler(subject)
    return found


class _Profiler:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, subject: Subject) -> dict[str, float]:
        profile = targets.get(subject.target).profile
        assert profile is not None
        return dict(profile(subject.path, subject.images[0], self.threads))
