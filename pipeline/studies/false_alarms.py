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

from edgewise import calib_data, targets
from edgewise.commands.console import FAILED, PASSED, run_guarded
from edgewise.errors import RequestError
from edgewise.files.open import open_runtime
from edgewise.images import resized
from edgewise.images.normalise import feed
from edgewise.measure import statistics
from edgewise.measure.agreement import compare_answers
from edgewise.measure.answers import compute_logits
from edgewise.measure.latency import measure
from edgewise.measure.paired import proportion_bounds
from edgewise.measure.soundness import right
from edgewise.measure.speed import speed
from edgewise.report import markdown
from edgewise.store.machine import machine
from edgewise.store.whole import write_whole
from edgewise.verify import card
from edgewise.verify.gates import Limits, on_accuracy, on_agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgewise.targets import Runner
    from edgewise.verify.card import Card

STATED = 0.05
"""The rate of false alarms that is promised."""
_CHANGED = 0.03
"""Share of images that two networks of equal accuracy tell differently, half of them each way."""
_SECONDS = 0.7
"""Of timing, for each pair."""


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
    first: Runner
    second: Runner
    """The same file, opened once more."""
    image: torch.Tensor


def open_subject(path: Path, name: str) -> Subject:
    """A file with its card, run over the test images of a data set. Raises RequestError for what cannot be."""
    kept = card.read(path)
    data = resized.resize_data(calib_data.load(name, kept.seed), kept.input_shape[1:])
    if data.shape != kept.input_shape:
        raise RequestError(f"{path.name} takes images {kept.input_shape}, the data has {data.shape}")
    target = targets.get(kept.target)
    first, second = (open_runtime(target, path) for _ in range(2))
    return Subject(
        path=path,
        kept=kept,
        answers=compute_logits(first, data.test, kept, fed=kept.fed).numpy(),
        labels=data.test.labels.numpy(),
        first=first,
        second=second,
        image=feed(data.test.batch(torch.tensor([0])), kept, kept.fed),
    )


def false_alarms(subject: Subject, trials: int, seed: int = 0) -> Iterator[Rate]:
    """Every rate in turn."""
    rng = np.random.default_rng(seed)
    yield _timing(subject, trials, 1.0, "false alarms")
    yield _accuracy(subject, rng, trials, 0.0, "false alarms")
    yield _agreement(subject, rng, trials)
    yield _timing(subject, max(1, trials // 4), 1.05, "power")
    yield _accuracy(subject, rng, trials, 0.01, "power")


def _timing(subject: Subject, trials: int, factor: float, wanted: str) -> Rate:
    """Called in turn with itself, the second ``factor`` times as long by computing on."""
    alarms = 0
    for _ in range(trials):
        usual = _median_ms(subject) * (factor - 1)
        calls: dict[str, Callable[[], object]] = {
            "b": partial(_prolonged, subject.second, subject.image, usual),
            "a": partial(_prolonged, subject.first, subject.image, 0.0),
        }
        found = measure(calls, seconds=_SECONDS, threads=1)
        interval = statistics.ratio_interval(found.samples["b"].blocks, found.samples["a"].blocks)[1]
        word = speed(interval, found.conditions("b"))
        alarms += word == "slower" if wanted == "power" else word != "cannot tell"
    what = "the same file twice" if factor == 1 else f"one made {factor - 1:.0%} slower"
    return Rate(name=f"time: {what}", alarms=alarms, trials=trials, wanted=wanted, method="speed over 30 blocks")


def _median_ms(subject: Subject) -> float:
    times = []
    for _ in range(21):
        started = time.perf_counter()
        subject.first(subject.image)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def _prolonged(runner: Runner, image: torch.Tensor, milliseconds: float) -> None:
    runner(image)
    if milliseconds:
        end = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < end:
            pass


def _accuracy(subject: Subject, rng: np.random.Generator, trials: int, fall: float, wanted: str) -> Rate:
    """Against a network that tells some images otherwise, as many gained as lost but for ``fall``, drawn anew each time."""
    told, alarms = right(subject.answers, subject.labels), 0
    limits = Limits(max_drop=fall / 2 if fall else 0.01)
    for _ in range(trials):
        ours = told.copy()
        changed = rng.random(len(told)) < _CHANGED + fall
        ours[changed] = rng.random(int(changed.sum())) < _CHANGED / 2 / (_CHANGED + fall)
        theirs = told.copy()
        theirs[changed] = ~ours[changed]
        alarms += on_accuracy(statistics.judge_top1(ours, theirs), limits).verdict == "fail"
    n = len(told)
    what = f"equal, {_CHANGED:.0%} of {n:,} told otherwise" if not fall else f"{100 * fall:g} point lost of {n:,}"
    method = f"non-inferiority, {100 * limits.max_drop:g} points allowed"
    return Rate(name=f"top-1: {what}", alarms=alarms, trials=trials, wanted=wanted, method=method)


def _agreement(subject: Subject, rng: np.random.Generator, trials: int) -> Rate:
    """Against itself, with the roundings of another kernel: up to a step at every answer, on images drawn anew."""
    alarms, n = 0, len(subject.answers)
    precision = subject.kept.row.precision or "float32"
    from edgewise.measure.agreement import rounding

    unit = rounding(subject.answers, precision)
    width = unit.unit if unit.unit_name == "steps" else 0.0
    for _ in range(trials):
        index = rng.integers(0, n, n)
        wanted = subject.answers[index]
        found = wanted + width * rng.integers(-1, 2, wanted.shape)
        alarms += on_agreement(compare_answers(found, wanted, precision), Limits()).verdict == "fail"
    return Rate(
        name=f"agreement: the same {precision} file, rounded otherwise", alarms=alarms, trials=trials,
        wanted="false alarms", method="ties by steps, exact bound of the rest",
    )  # fmt: skip


def write_table(rates: Sequence[Rate], subject: Subject, out: Path) -> None:
    """``out`` with the rates as Markdown, and beside it as JSON."""
    rows = [[rate.name, rate.method, rate.wanted, f"{rate.alarms} of {rate.trials}", _percent(rate)] for rate in rates]
    text = [
        "# False alarms and power of the gates",
        "",
        f"Written by `nox -s false_alarms` on {machine()}, with {subject.path.name} on {len(subject.labels):,} test images. "
        f"At most {STATED:.0%} false alarms are stated; intervals are exact, of 95 %.",
        "",
        *markdown.table(["comparison", "judged by", "counted", "alarms", "rate"], rows),
        "",
    ]
    write_whole(out, "\n".join(text).encode())
    document: dict[str, Any] = {"machine": machine(), "rates": [asdict(rate) for rate in rates]}
    write_whole(out.with_suffix(".json"), json.dumps(document, indent=1).encode())


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.alarms / rate.trials:.1%} ({low:.1%} to {high:.1%})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    return run_guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    """0 where no rate of false alarms is certainly above what is stated."""
    torch.set_num_threads(1)
    subject, rates = open_subject(options.artifact, options.data), []
    for rate in false_alarms(subject, options.trials):
        rates.append(rate)
        print(f"{rate.name}: {rate.alarms} of {rate.trials}, {_percent(rate)}", file=sys.stderr, flush=True)
        write_table(rates, subject, options.out)
    return PASSED if all(rate.fits for rate in rates) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.studies.false_alarms",
        description="How often the gates alarm without a cause, and how often they see a known one.",
    )
    parser.add_argument("artifact", type=Path, metavar="FILE", help="a written file with its card")
    parser.add_argument("--data", required=True, metavar="D", help="reader or reader:PATH")
    parser.add_argument("--trials", type=int, default=200, help="comparisons of each kind (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/false-alarms.md"), metavar="F", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
