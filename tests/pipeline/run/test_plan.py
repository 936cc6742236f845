"""The plan before the work: what is told, what is in the store, how long, and what the test set can prove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewise.measure.cost.totals import count_costs
from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.recipes import quantize_only
from edgewise.report.watch import Watch
from edgewise.run import estimate as module
from edgewise.run import plan
from edgewise.run.job import Job, resolve_recipe
from edgewise.run.plan import duration_words, make_plan
from edgewise.run.steps import Steps
from edgewise.stage import Stage
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.remove_blocks import RemoveBlocks
from edgewise.stages.remove_blocks.find import find_blocks
from edgewise.stages.remove_blocks.plan import without_blocks
from edgewise.stages.separate import Separate
from edgewise.stages.training.pace import Pace
from edgewise.stages.training.settings import Training
from edgewise.store.entries import Store
from edgewise.verify.gates import Limits


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The quantize-only recipe on the digits with weights, its store empty."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    with torch.random.fork_rng(devices=[]):
        torch.save(architecture.build(Base("tiny_resnet", 10, 1)).state_dict(), tmp_path / "w.pt")
    return resolve_recipe(replace(quantize_only(), weights=str(tmp_path / "w.pt")), tmp_path / "out")


def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image takes 10 ms of training, 2 of a teacher, 1 of testing."""
    pace = Pace(train=0.01, ask=0.002, batch=64, precision="bf16-mixed")
    monkeypatch.setattr(module, "measure_pace", lambda *given: pace)
    monkeypatch.setattr(module, "_measure_test", lambda network, job: 0.001)


def staged(job: Job, *stages: Stage) -> Job:
    """The job with these steps and no quantization."""
    return replace(job, recipe=replace(job.recipe, stages=stages, quantize=None, candidates=()))


def test_a_teacher_is_asked_about_each_view_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    tuned = Finetune(training=Training(epochs=10, lr=0.1, distill=0.9, views=4))
    step = make_plan(staged(job, tuned)).steps[1]
    assert step.seconds == step.least == pytest.approx(len(job.data.train) * (10 * 0.01 + 4 * 0.002) + 0.54)


def test_a_network_without_its_blocks_trains_in_its_share_of_the_time(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(monkeypatch)
    network = architecture.build(job.base)
    blocks = find_blocks(network.eval(), job.images())
    left = count_costs(without_blocks(network, blocks), job.data.shape).macs / count_costs(network, job.data.shape).macs
    assert 0 < left < 1
    gone, tuned = (
        RemoveBlocks(blocks=tuple(block.name for block in blocks)),
        Finetune(training=Training(epochs=3, lr=0.1)),
    )
    step = make_plan(staged(job, gone, tuned)).steps[2]
    assert step.seconds == step.least == pytest.approx(left * (len(job.data.train) * 0.03 + 0.54))


@pytest.mark.parametrize(
    ("cut", "share", "words"),
    [
        (Prune(macs=0.5), 0.5, " to "),
        (Prune(channels=0.5), 0.25, " to "),
        (Prune(params=0.5), 0.0, "at most about "),
        (RemoveBlocks(count=1), 0.0, "at most about "),
        (Separate(recover_steps=0), 0.0, "at most about "),
        (Fold(), 1.0, "about "),
    ],
)
def test_a_cut_gives_the_time_a_lower_end(
    job: Job, monkeypatch: pytest.MonkeyPatch, cut: Stage, share: float, words: str
) -> None:
    seen(monkeypatch)
    found = make_plan(staged(job, cut, Finetune(training=Training(epochs=30, lr=0.1))))
    whole = len(job.data.train) * 0.3 + 0.54
    assert found.steps[2].seconds == pytest.approx(whole) and found.steps[2].least == pytest.approx(share * whole)
    (time,) = (line for line in found.lines if line.startswith("Time: "))
    assert words in time and ("the less where a step shrinks the network" in time) == (share < 1)


def test_the_plan_tells_network_data_steps_and_proof(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    found = make_plan(job)
    model, data, fed, steps, time, proof = found.lines
    assert model.startswith("Model: tiny_resnet, ") and "10 classes; weights from " in model
    assert f"{len(job.data.train):,} training" in data and "540 test images of 1×8×8." in data
    assert fed.startswith("Fed: mean ") and "; std " in fed
    names = ["baseline", "fold", "calibrate", "quantize", "onnx float", "onnx int8"]
    assert [step.name for step in found.steps] == names and steps == f"Steps: {', '.join(names)}."
    # Two epochs of every training image, each time with a teacher's answers; and each row's test images.
    assert found.steps[3].seconds == pytest.approx(2 * len(job.data.train) * (0.01 + 0.002) + 540 * 0.001)
    assert found.steps[3].least == pytest.approx(0.54), "calibration alone may do"
    assert found.steps[0].seconds == found.steps[0].least == pytest.approx(0.54)
    assert (
        time.startswith("Time: 3 s to ") and "(warm training steps of 64 images in bf16-mixed, measured here)" in time
    )
    assert proof.startswith(
        "Proof: 540 test images can exclude a fall of 1.6 points where 3% of them change class (0.71 where none"
    )
    assert "the limit is 1, which needs about " in proof


def test_what_the_store_holds_costs_no_time(job: Job) -> None:
    watch = Watch(quiet=True)
    steps = Steps(job=job, store=Store(job.store), watch=watch)
    assert steps.count_kept() == 0
    steps.baseline()
    assert steps.count_kept() == 1
    found = make_plan(job)
    assert found.steps[0].seconds == 0 < found.steps[1].seconds
    assert any("The first is in the store." in line for line in found.lines)


def test_a_limit_within_reach_is_called_enough(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    wide = replace(job, recipe=replace(job.recipe, limits=Limits(max_drop=0.05)))
    assert make_plan(wide).lines[-1].endswith("the limit is 5: enough.")


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    ("threads", "load", "slowed", "told"),
    [(2, 3.0, 1.0, True), (2, 0.1, 4.0, True), (2, 0.1, 1.0, False), (1, 9.0, 9.0, False)],
)
def test_threads_that_train_among_others_are_warned_of(
    threads: int, load: float, slowed: float, told: bool, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(monkeypatch)
    pace = Pace(train=0.01, ask=0.002, batch=64, precision="bf16-mixed", slowed=slowed)
    monkeypatch.setattr(module, "measure_pace", lambda *_: pace)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(plan, "read_load", lambda: load)
    warnings = make_plan(job).warnings
    assert bool(warnings) is told
    if told:
        assert "OMP_NUM_THREADS=1 before the command" in warnings[0] and f"{load:.1f} programs" in warnings[0]
