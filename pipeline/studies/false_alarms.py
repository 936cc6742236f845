"""How often the gates cry wolf, and how often they see one: ``python -m edgewise.studies.false_alarms FILE --data D``.

A/A: a written file against itself, opened twice, so that every alarm is a false one. A/B: the same with a known fault
planted, a share of the time or of the answers. Rates are told with their exact 95 % intervals (Clopper and Pearson 1934).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgewise import targets
from edgewise.commands.console import FAILED, PASSED, run_guarded
from edgewise.errors import RequestError
from edgewise.files.open import open_runtime
from edgewise.images import resized
from edgewise.images.feed import feed_images
from edgewise.measure import statistics
from edgewise.measure.agreement import compare_answers, rounding_of
from edgewise.measure.answers import compute_logits
from edgewise.measure.conditions import MOVED, STARVED, Conditions
from edgewise.measure.cpus import pin_threads
from edgewise.measure.latency import measure
from edgewise.measure.paired import proportion_bounds
from edgewise.measure.soundness import correct_images
from edgewise.measure.speed import Speed, speed_verdict
from edgewise.measure.values import Latency
from edgewise.report import markdown
from edgewise.store.machine import machine_name
from edgewise.store.whole import write_whole
from edgewise.verify import card
from edgewise.verify.gates import Limits, on_accuracy, on_agreement, on_latency

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgewise.targets import Runner
    from edgewise.verify.card import Card

STATED = 0.05
"""The rate of false alarms that is promised."""
_CHANGED = 0.03
"""Share of images that two networks of equal accuracy tell differently, half of them each way."""
_SLOWER = 1.05
"""The known slowdown."""
_SECONDS = 3.0
"""Of timing, for each pair: as long as a run measures."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many of some comparisons raised an alarm."""

    name: str
    alarms: int
    trials: int
    wanted: str
    """``false alarms``: as few as possible; ``power``: as many."""
    method: str

    @property
    def interval(self) -> tuple[float, float]:
        """Exact, 95 %."""
        return proportion_bounds(self.alarms, self.trials, 0.025)

    @property
    def fits(self) -> bool:
        """Whether the rate is not certainly above what is stated; power is only told."""
        return self.wanted == "power" or self.interval[0] <= STATED


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compared with itself."""

    path: Path
    kept: Card
    answers: NDArray[np.float32]
    """The file's, [n, classes]."""
    labels: NDArray[np.int64]
    image: torch.Tensor

    def open(self) -> Runner:
        """The file in its runtime, opened anew: where its numbers lie in memory is part of what a comparison meets."""
        return open_runtime(targets.get(self.kept.target), self.path)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One comparison of two times."""

    ratio: float
    interval: tuple[float, float]
    p50_ms: float
    conditions: Conditions

    @property
    def word(self) -> Speed:
        """As ``bench`` and ``compare`` say it."""
        return speed_verdict(self.interval, self.conditions)

    def fails(self, allowed: float) -> bool:
        """Whether the latency gate of a run says that the time is above ``allowed`` of the baseline's."""
        latency = Latency(
            on="", batch=1, threads=1, p50_ms=self.p50_ms, p90_ms=self.p50_ms, ratio_to_baseline=self.ratio,
            ci95=self.interval, conditions=self.conditions,
        )  # fmt: skip
        return on_latency(latency, Limits(max_latency_ratio=allowed)).verdict == "fail"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine did while a series of times was compared."""

    comparisons: int
    p50_ms: float
    """Median of all comparisons."""
    cpu_share: float
    """Processor time over wall time, the median comparison's."""
    starved: int
    """Comparisons in which others used the processor."""
    clock: int
    """... in which the clock fell."""
    drifted: int
    """... in which the file's time drifted."""
    processors: str
    timed: tuple[Timed, ...]
    """Each comparison."""


def open_subject(path: Path, name: str) -> Subject:
    """A file with its card, run over the test images of a data set. Raises RequestError for what cannot be."""
    own_card = card.read(path)
    data = resized.resize_data(card.load_images(own_card, name), own_card.input_shape[1:])
    if data.shape != own_card.input_shape:
        raise RequestError(f"{path.name} takes images {own_card.input_shape}, the data has {data.shape}")
    runner = open_runtime(targets.get(own_card.target), path)
    return Subject(
        path=path,
        kept=own_card,
        answers=compute_logits(runner, data.test, own_card, fed=own_card.fed).numpy(),
        labels=data.test.labels.numpy(),
        image=feed_images(data.test.batch(torch.tensor([0])), own_card, own_card.fed),
    )


def judge_answers(subject: Subject, trials: int, seed: int = 0) -> Iterator[Rate]:
    """The rates of the gates on answers in turn, on the same images with roundings and changes drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    yield _accuracy(subject, rng, trials, 0.0, "false alarms")
    yield _accuracy(subject, rng, trials, 0.01, "power")
    yield _agreement(subject, rng, trials)


def judge_times(subject: Subject, trials: int, seconds: float) -> Iterator[tuple[list[Rate], Machine]]:
    """The rates of what judges times, first of the file against itself, then against itself made slower."""
    same = [_timed(subject, 1.0, seconds) for _ in range(trials)]
    yield [*_rates(f"time: {subject.path.name} twice", same, "false alarms")], _machine(same)
    slower = [_timed(subject, _SLOWER, seconds) for _ in range(trials)]
    name = f"time: {subject.path.name} against itself made {_SLOWER - 1:.0%} slower"
    yield [*_rates(name, slower, "power")], _machine(slower)


def _rates(name: str, timed: Sequence[Timed], wanted: str) -> Iterator[Rate]:
    """Over all comparisons, and over those that nothing disturbed: a disturbance is allowed to have made such a ratio."""
    calm = [one for one in timed if not one.conditions.disturbances]
    parts = [(timed, "")] + ([(calm, ", undisturbed")] if 0 < len(calm) < len(timed) else [])
    words: tuple[Speed, ...] = ("slower",) if wanted == "power" else ("faster", "slower")
    for some, where in parts:
        for word in words:
            count = sum(one.word == word for one in some)
            yield Rate(name=f"{name}{where}", alarms=count, trials=len(some), wanted=wanted, method=word)
        yield _gate_rate(f"{name}{where}", some, 1.0, wanted)


def _gate_rate(name: str, timed: Sequence[Timed], allowed: float, wanted: str) -> Rate:
    fails = sum(one.fails(allowed) for one in timed)
    return Rate(name=name, alarms=fails, trials=len(timed), wanted=wanted, method=f"latency gate, {allowed:g} allowed")


def _timed(subject: Subject, factor: float, seconds: float) -> Timed:
    """The file opened twice and called in turn with itself, the second ``factor`` times as long by computing on."""
    first, second = subject.open(), subject.open()
    usual = _median_ms(first, subject.image) * (factor - 1)
    calls: dict[str, Callable[[], object]] = {
        "b": partial(_run_prolonged, second, subject.image, usual),
        "a": partial(_run_prolonged, first, subject.image, 0.0),
    }
    times = measure(calls, seconds=seconds, threads=1)
    ratio, interval = statistics.ratio_interval(times.samples["b"].blocks, times.samples["a"].blocks)
    p50 = times.samples["a"].percentile(50)
    return Timed(ratio=ratio, interval=interval, p50_ms=p50, conditions=times.conditions("b"))


def _machine(timed: Sequence[Timed]) -> Machine:
    conditions = [one.conditions for one in timed]
    with pin_threads(1) as processors:
        listing = ", ".join(map(str, sorted(processors))) or "left to the scheduler"
    return Machine(
        comparisons=len(timed),
        p50_ms=float(np.median([one.p50_ms for one in timed])),
        cpu_share=float(np.median([one.cpu_share for one in conditions])),
        starved=sum(one.cpu_share < STARVED for one in conditions),
        clock=sum(one.clock_change > MOVED for one in conditions),
        drifted=sum(abs(one.drift) > MOVED for one in conditions),
        processors=listing,
        timed=tuple(timed),
    )


def _median_ms(runner: Runner, image: torch.Tensor) -> float:
    times = []
    for _ in range(21):
        start = time.perf_counter()
        runner(image)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _run_prolonged(runner: Runner, image: torch.Tensor, milliseconds: float) -> None:
    runner(image)
    if milliseconds:
        end = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < end:
            pass


def _accuracy(subject: Subject, rng: np.random.Generator, trials: int, fall: float, wanted: str) -> Rate:
    """Against a network that tells some images otherwise, as many gained as lost but for ``fall``, drawn anew each time."""
    hits, alarms = correct_images(subject.answers, subject.labels), 0
    limits = Limits(max_drop=fall / 2 if fall else 0.01)
    for _ in range(trials):
        ours = hits.copy()
        is_changed = rng.random(len(hits)) < _CHANGED + fall
        ours[is_changed] = rng.random(int(is_changed.sum())) < _CHANGED / 2 / (_CHANGED + fall)
        theirs = hits.copy()
        theirs[is_changed] = ~ours[is_changed]
        alarms += on_accuracy(statistics.judge_top1(ours, theirs), limits).verdict == "fail"
    n = len(hits)
    what = f"equal, {_CHANGED:.0%} of {n:,} told otherwise" if not fall else f"{100 * fall:g} point lost of {n:,}"
    method = f"non-inferiority, {100 * limits.max_drop:g} points allowed"
    return Rate(name=f"top-1: {what}", alarms=alarms, trials=trials, wanted=wanted, method=method)


def _agreement(subject: Subject, rng: np.random.Generator, trials: int) -> Rate:
    """Against itself, with the roundings of another kernel: up to a step at every answer, on images drawn anew."""
    alarms, n = 0, len(subject.answers)
    precision = subject.kept.row.precision or "float32"
    unit = rounding_of(subject.answers, precision)
    width = unit.unit if unit.unit_name == "steps" else 0.0
    for _ in range(trials):
        index = rng.integers(0, n, n)
        expected = subject.answers[index]
        answers = expected + width * rng.integers(-1, 2, expected.shape)
        alarms += on_agreement(compare_answers(answers, expected, precision), Limits()).verdict == "fail"
    return Rate(
        name=f"agreement: the same {precision} file, rounded otherwise", alarms=alarms, trials=trials,
        wanted="false alarms", method="ties by steps, exact bound of the rest",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Page:
    """What was measured so far."""

    named: str
    """The files and their images, in words."""
    rates: list[Rate]
    machines: list[Machine]


def write_page(page: Page, out: Path) -> None:
    """``out`` with the rates and the conditions as Markdown, and beside it as JSON."""
    rows = [
        [rate.name, rate.method, rate.wanted, f"{rate.alarms} of {rate.trials}", _percent(rate)] for rate in page.rates
    ]
    conditions = [
        [f"{one.comparisons}", f"{one.p50_ms:.3g}", one.processors, f"{one.cpu_share:.0%}", *map(str, (one.starved, one.clock, one.drifted))]
        for one in page.machines
    ]  # fmt: skip
    text = [
        "# False alarms and power of the gates",
        "",
        f"Written by `nox -s false_alarms` on {machine_name()}, with {page.named}. At most {STATED:.0%} false alarms are stated, half of them on "
        "either side; intervals are exact, of 95 %. Times are compared with each file opened anew for every comparison.",
        "",
        *markdown.markdown_table(["comparison", "judged by", "counted", "alarms", "rate"], rows),
        "",
        "What the machine did meanwhile, one line for each series of times, in the table's order; a disturbed comparison is judged "
        "with [more leeway](how-results-are-judged.md#time).",
        "",
        *markdown.markdown_table(
            ["comparisons", "median ms", "processor", "had of it", "others used it", "clock fell", "time drifted"], conditions
        ),
        "",
    ]  # fmt: skip
    write_whole(out, "\n".join(text).encode())
    document: dict[str, Any] = {"machine": machine_name()} | asdict(page)
    write_whole(out.with_suffix(".json"), json.dumps(document, indent=1).encode())


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.alarms / rate.trials:.1%} ({low:.1%} to {high:.1%})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run_study(options))


def _run_study(options: argparse.Namespace) -> int:
    """0 where no rate of false alarms is certainly above what is stated."""
    torch.set_num_threads(1)
    subjects = [open_subject(path, options.data) for path in options.artifact]
    title = f"{' and '.join(one.path.name for one in subjects)} on {len(subjects[0].labels):,} test images"
    page = Page(named=title, rates=[], machines=[])
    for subject in subjects:
        for rate in judge_answers(subject, options.trials):
            _add(page, [rate], options.out)
        for rates, records in judge_times(subject, options.trials, options.seconds):
            page.machines.append(records)
            _add(page, rates, options.out)
    return PASSED if all(rate.fits for rate in page.rates) else FAILED


def _add(page: Page, rates: Sequence[Rate], out: Path) -> None:
    for rate in rates:
        page.rates.append(rate)
        print(
            f"{rate.name}, {rate.method}: {rate.alarms} of {rate.trials}, {_percent(rate)}", file=sys.stderr, flush=True
        )
    write_page(page, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.false_alarms",
        description="How often the gates alarm without a cause, and how often they see a known one.",
    )
    parser.add_argument("artifact", type=Path, nargs="+", metavar="FILE", help="a written file with its card")
    parser.add_argument("--data", required=True, metavar="D", help="reader or reader:PATH")
    parser.add_argument("--trials", type=int, default=200, help="comparisons of each kind (%(default)s)")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of timing for each pair (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/false-alarms.md"), metavar="F", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
