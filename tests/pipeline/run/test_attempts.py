"""What follows a failed gate: stages judged together, milder settings, and rows that were given up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.report.rows import Row, Verdict
from edgewise.run.attempts import describe_change, group_attempts, milder_attempt
from edgewise.run.session import Session
from edgewise.stage import Stage, traits_of
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.prune.sparsify import Sparsify
from edgewise.stages.quantize import Quantize
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.separate import Separate
from edgewise.stages.separate.average_pool import AveragePool
from edgewise.stages.separate.pooled_head import PooledHead
from edgewise.stages.train import Train
from edgewise.stages.training.settings import Training

TUNE = Finetune(training=Training(epochs=1, lr=0.1))


def test_a_stage_is_judged_with_the_fine_tuning_that_follows() -> None:
    prune, fold = Prune(channels=0.5), Fold()
    assert group_attempts((prune, TUNE, fold)) == [(prune, TUNE), (fold,)]
    assert group_attempts((TUNE, TUNE)) == [(TUNE,), (TUNE,)]
    assert group_attempts((fold, prune, TUNE, TUNE)) == [(fold,), (prune, TUNE), (TUNE,)]
    assert group_attempts(()) == []


def test_cuts_in_a_row_are_judged_after_all_of_them_were_tuned() -> None:
    prune, blocks, fold = Prune(channels=0.5), RemoveBlocks(blocks=("layer1.1",)), Fold()
    assert group_attempts((blocks, prune, TUNE)) == [(blocks, prune, TUNE)]
    assert group_attempts((prune, fold, TUNE)) == [(prune, fold, TUNE)]
    assert group_attempts((fold, blocks, prune, TUNE, prune)) == [(fold,), (blocks, prune, TUNE), (prune,)]
    assert group_attempts((TUNE, prune, TUNE)) == [(TUNE,), (prune, TUNE)]
    assert group_attempts((blocks, prune, fold)) == [(blocks,), (prune,), (fold,)]


CUTS = [
    Prune(channels=0.5),
    RemoveBlocks(count=1),
    Separate(),
    PooledHead(),
    AveragePool(),
    Sparsify(training=TUNE.training),
]


@pytest.mark.parametrize("stage", [*CUTS, Fold(), TUNE, Train(training=TUNE.training)])
def test_what_cuts_says_so(stage: Stage) -> None:
    assert traits_of(stage).cuts == (stage in CUTS)


@pytest.mark.parametrize(
    ("stage", "softer"),
    [
        (Prune(channels=0.6), Prune(channels=0.8)),
        (Prune(macs=0.5), Prune(macs=0.75)),
        (Prune(latency=0.6, max_drop=0.1), Prune(latency=0.8, max_drop=0.1)),
        (Prune(max_drop=0.02), Prune(max_drop=0.01)),
        (Prune(milliseconds=2.0), None),
        (Prune(bytes=50_000), None),
        (Separate(max_layers=5), Separate(max_layers=2)),
        (Separate(max_layers=1), None),
        (Separate(max_drop=0.1), Separate(max_drop=0.05)),
        (Separate(), Separate(max_error=0.5)),
        (Quantize(sensitivity=0), Quantize(sensitivity=128, max_float_layers=2)),
        (Fold(), None),
    ],
)
def test_milder_settings(stage: Any, softer: Any) -> None:
    assert milder_attempt((stage, TUNE)) == (None if softer is None else (softer, TUNE))


def test_each_of_several_cuts_is_softened() -> None:
    settings = (Prune(channels=0.6), RemoveBlocks(blocks=("layer1.1",)), Separate(max_layers=4), TUNE)
    softer = milder_attempt(settings)
    assert softer == (Prune(channels=0.8), settings[1], Separate(max_layers=2), TUNE)
    assert describe_change(settings, softer) == "prune with channels 0.8 and separate with max_layers 2"


def session(tmp_path: Path, on_failure: str, verdicts: list[Verdict], trials: int = 3) -> tuple[Session, list[Any]]:
    """A session whose steps do nothing but add a row with the next verdict, and the settings they were called with."""
    recipe = Recipe(
        name="r", model="m", data="d", baseline=Train(training=Training(epochs=1, lr=0.1)), on_failure=on_failure, trials=trials,
    )  # fmt: skip
    called: list[Any] = []
    report = SimpleNamespace(rows=[], write=lambda out: None)
    job = SimpleNamespace(recipe=recipe, out=tmp_path)
    watch = SimpleNamespace(row=lambda row: None, detail=lambda text: None)
    made = Session(job=job, watch=watch, steps=None, files=None, report=report, outcomes=None)  # type: ignore[arg-type]
    given = iter(verdicts)

    def step(stage: Any, model: Any, baseline: Any, after: Any) -> Any:
        called.append(stage)
        made._add(None, row(next(given)))
        return f"{model} {len(called)}"

    made.step = step  # type: ignore[method-assign]
    return made, called


def row(verdict: Verdict) -> Row:
    return Row(
        step="prune", target=None, params=1, macs=1, bytes=1, accuracy=None, latency=None, verification=None,
        undelegated=(), verdict=verdict, reason="why", seconds=0.0,
    )  # fmt: skip


Run = Callable[..., tuple[Session, list[Any]]]


def test_stop_ends_with_the_failure(tmp_path: Path) -> None:
    made, called = session(tmp_path, "stop", ["fail"])
    assert made.attempt((Prune(channels=0.6), TUNE), "base", "base") == "base 1"  # type: ignore[arg-type, comparison-overlap]
    assert made.failed and len(called) == 1 and made.report.rows[0].kept


def test_skip_goes_on_from_the_network_before(tmp_path: Path) -> None:
    made, called = session(tmp_path, "skip", ["not-checked", "fail"])
    assert made.attempt((Prune(channels=0.6), TUNE), "base", "base") == "base"  # type: ignore[arg-type, comparison-overlap]
    assert not made.failed and len(called) == 2
    assert [r.kept for r in made.report.rows] == [False, False]
    assert made.report.rows[1].reason == "why; skipped: the run goes on from the network before it"


def test_back_off_tries_milder_settings_each_with_a_row(tmp_path: Path) -> None:
    made, called = session(tmp_path, "back off", ["fail", "not-checked", "fail", "not-checked", "pass"])
    result = made.attempt((Prune(channels=0.6), TUNE), "base", "base")  # type: ignore[arg-type]
    assert not made.failed and result == "base 4 5"  # type: ignore[comparison-overlap]
    assert [stage.channels for stage in called if isinstance(stage, Prune)] == [0.6, 0.8, 0.9]
    assert [r.kept for r in made.report.rows] == [False, False, False, True, True]
    assert "prune with channels 0.8 is tried next" in made.report.rows[0].reason


@pytest.mark.parametrize(("stage", "tried"), [(Prune(channels=0.6), 2), (Prune(milliseconds=1.0), 1)])
def test_the_last_setting_that_fails_ends_the_run(tmp_path: Path, stage: Prune, tried: int) -> None:
    made, called = session(tmp_path, "back off", ["fail"] * 3, trials=2)
    made.attempt((stage,), "base", "base")  # type: ignore[arg-type]
    assert made.failed and len(called) == tried
    assert [r.kept for r in made.report.rows] == [False] * (tried - 1) + [True]


def test_a_choice_that_there_is_not() -> None:
    with pytest.raises(RequestError, match="wanted 'stop', 'back off' or 'skip', found str 'retry'"):
        Recipe(
            name="r", model="m", data="d", baseline=Train(training=Training(epochs=1, lr=0.1)), on_failure="retry",  # type: ignore[arg-type]
        )  # fmt: skip


def test_limits_for_a_target_that_there_is_not() -> None:
    from edgewise.verify.gates import Limits

    with pytest.raises(RequestError, match=r"limits a target 'onxx' that there is not; choices: .*onnx"):
        Recipe(
            name="r", model="m", data="d", baseline=Train(training=Training(epochs=1, lr=0.1)),
            target_limits={"onxx": Limits()},
        )  # fmt: skip
