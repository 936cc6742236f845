"""What a trial's run comes to: stopped as soon as that is certain, or a file whose figures are weighed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgewise import Fold, Prune, recipes
from edgewise.report.document import Report
from edgewise.report.rows import Row
from edgewise.search import trial
from edgewise.search.quantities import read_bound, read_objectives
from edgewise.search.trial import Judge, Outcome, read_outcome, run_trial, shorter_recipe
from edgewise.stages.finetune import Finetune
from edgewise.stages.quantize import Quantize

OBJECTIVES = read_objectives(["top1", "bytes"])
RECIPE = dataclasses.replace(recipes.demo(), targets=("onnx",))  # its own limit is two points


def file_row(*, delta: float = 0.0, ci: tuple[float, float] = (-0.03, 0.03), **fields: Any) -> Row:
    from edgewise.measure.values import Accuracy, Difference

    accuracy = Accuracy(top1=0.9, n=180, ci95=(0.85, 0.94), vs_baseline=Difference(delta=delta, ci95=ci, p_value=0.5))
    row = Row(
        step="artifact", target="onnx", params=1, macs=1, bytes=1000, accuracy=accuracy, latency=None, verification="runtime",
        undelegated=(), verdict="pass", reason="fine", seconds=1.0, precision="int8",
    )  # fmt: skip
    return dataclasses.replace(row, **fields)


def outcome_of(*rows: Row, **judge: Any) -> Outcome:
    return read_outcome(
        Report(recipe={}, environment={}, rows=list(rows)), RECIPE, Judge(objectives=OBJECTIVES, **judge)
    )


def test_a_file_that_passed_is_weighed() -> None:
    outcome = outcome_of(file_row(ci=(-0.01, 0.01)))
    assert outcome.is_whole and outcome.verdict == "pass" and outcome.figures["bytes"] == (1000, 1000, 1000)
    assert all(excess <= 0 for excess in outcome.excesses.values())


@pytest.mark.parametrize(("delta", "within"), [(-0.015, True), (-0.025, False)])
def test_what_few_images_leave_open_counts_by_its_value(delta: float, within: bool) -> None:
    outcome = outcome_of(file_row(delta=delta, ci=(-0.05, 0.01), verdict="not-checked", reason="too few images"))
    assert outcome.verdict == "not-checked" and "too few images" in outcome.reason
    assert (outcome.excesses["drop@onnx=0.02"] <= 0) is within


def test_a_limit_of_the_search_takes_the_place_of_the_recipes_own() -> None:
    limits = (read_bound("drop=0.5", "--limit"), read_bound("bytes=900", "--limit"))
    outcome = outcome_of(file_row(delta=-0.1, ci=(-0.12, -0.08)), limits=limits)
    assert set(outcome.excesses) == {"gates@onnx", "drop=0.5", "bytes=900"}
    assert outcome.excesses["drop=0.5"] < 0 < outcome.excesses["bytes=900"] and outcome.verdict == "fail"


def test_a_failed_step_stops_a_trial_with_its_reason() -> None:
    step = file_row(step="prune", target=None, verification=None, verdict="fail", reason="not faster: 1.2 of its input")
    outcome = outcome_of(step)
    assert (outcome.rung, outcome.reason) == ("run", "prune: not faster: 1.2 of its input")
    assert not outcome.figures and outcome.excesses == {"gates of a step": 1.0}
    let_go = dataclasses.replace(step, kept=False)
    assert outcome_of(let_go, file_row()).is_whole


def test_a_file_that_could_not_be_written_is_no_point() -> None:
    outcome = outcome_of(file_row(accuracy=None, bytes=None, verdict="fail", reason="operator unknown"))
    assert not outcome.is_whole and "operator unknown" in outcome.reason


def test_a_file_that_fails_a_gate_is_beyond_the_limits() -> None:
    outcome = outcome_of(file_row(verdict="fail", reason="two layers compute something else"))
    assert outcome.is_whole and outcome.excesses["gates@onnx"] == 1.0 and "two layers" in outcome.reason


def test_a_quarter_of_the_training_is_a_recipe_of_its_own() -> None:
    short = shorter_recipe(recipes.demo())
    assert short is not None and isinstance(short.quantize, Quantize) and short.quantize.training is None
    epochs = [stage.training.epochs for stage in short.stages if isinstance(stage, Finetune)]
    assert epochs == [5, 5] and short.limits.max_drop == pytest.approx(0.06)
    assert shorter_recipe(dataclasses.replace(RECIPE, stages=(Prune(macs=0.5), Fold()))) is None


def test_a_budget_that_no_plan_can_meet_is_stopped_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("nothing is to be run"))
    recipe = dataclasses.replace(RECIPE, stages=(Prune(macs=0.001), Fold()))
    outcome = run_trial(recipe, tmp_path / "trial", Judge(objectives=OBJECTIVES))
    assert (
        outcome.rung == "plan"
        and "0.1% of the multiply-accumulates" in outcome.reason
        and outcome.excesses == {"request": 1.0}
    )


def test_a_network_that_is_lost_after_a_quarter_of_its_training_is_stopped_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    seen: list[Path] = []

    def lost(job: Any, _: Any) -> Report:
        seen.append(job.out)
        step = file_row(
            step="finetune", target=None, verification=None, verdict="fail", reason="top-1 fell by 30.00 points"
        )
        return Report(recipe={}, environment={}, rows=[step])

    monkeypatch.setattr(trial, "run", lost)
    outcome = run_trial(RECIPE, tmp_path / "trial", Judge(objectives=OBJECTIVES, rungs="always"))
    assert seen == [tmp_path / "trial" / "short"] and outcome.rung == "short training"
    assert outcome.reason == "after a quarter of its training: finetune: top-1 fell by 30.00 points"
