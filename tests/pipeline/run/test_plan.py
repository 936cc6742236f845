"""The plan before the work: what is told, what is in the store, how long, and what the test set can prove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.recipes import quantize_only
from edgewise.report.watch import Watch
from edgewise.run import plan as module
from edgewise.run.job import Job, resolve
from edgewise.run.plan import make_plan, spoken
from edgewise.run.steps import Steps
from edgewise.store.entries import Store
from edgewise.verify.gates import Limits


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The quantize-only recipe on the digits with weights, its store empty."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    with torch.random.fork_rng(devices=[]):
        torch.save(architecture.build(Base("tiny_resnet", 10, 1)).state_dict(), tmp_path / "w.pt")
    return resolve(replace(quantize_only(), weights=str(tmp_path / "w.pt")), tmp_path / "out")


def test_the_plan_tells_network_data_steps_and_proof(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds_of_training", lambda network, job: 0.01)
    monkeypatch.setattr(module, "_seconds_of_testing", lambda network, job: 0.001)
    found = make_plan(job)
    model, data, steps, time, proof = found.lines
    assert model.startswith("Model: tiny_resnet, ") and "10 classes; weights from " in model
    assert f"{len(job.data.train):,} training" in data and "540 test images of 1×8×8; normalised with mean" in data
    names = ["baseline", "fold", "calibrate", "quantize", "onnx float", "onnx int8"]
    assert [step.name for step in found.steps] == names and steps == f"Steps: {', '.join(names)}."
    # Each row's test images; where it is needed, two epochs of every training image, a teacher's answers as a third more.
    assert all(step.seconds == pytest.approx(0.54) for step in found.steps)
    perhaps = 2 * len(job.data.train) * 4 / 3 * 0.01
    assert f"about 3 s of training and testing, and {spoken(perhaps)} of training where calibration alone" in time
    assert proof.startswith(
        "Proof: 540 test images can exclude a fall of 1.6 points where 3% of them change class (0.71 where none"
    )
    assert "the limit is 1, which needs about " in proof


def test_training_that_is_certain_is_the_step_s_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds_of_training", lambda network, job: 0.01)
    monkeypatch.setattr(module, "_seconds_of_testing", lambda network, job: 0.001)
    assert job.recipe.quantize is not None
    certain = replace(job, recipe=replace(job.recipe, quantize=replace(job.recipe.quantize, when_needed=False)))
    found = make_plan(certain)
    assert found.steps[3].seconds == pytest.approx(2 * len(job.data.train) * 4 / 3 * 0.01 + 0.54)
    assert "where calibration alone" not in found.lines[3]


def test_nothing_to_train_on_needs_no_measured_training(job: Job) -> None:
    assert job.recipe.quantize is not None
    alone = replace(job.recipe, quantize=replace(job.recipe.quantize, training=None))
    nothing = replace(job.data, train=Nothing())
    assert make_plan(replace(job, recipe=alone, data=nothing)).steps[0].seconds > 0


class Nothing:
    """No images."""

    labels = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return 0

    def batch(self, index: Tensor) -> Tensor:
        raise AssertionError("there are none")


def test_what_the_store_holds_costs_no_time(job: Job) -> None:
    watch = Watch(quiet=True)
    steps = Steps(job=job, store=Store(job.store), watch=watch)
    assert steps.count_kept() == 0
    steps.baseline()
    assert steps.count_kept() == 1
    found = make_plan(job)
    assert found.steps[0].seconds == 0 < found.steps[1].seconds
    assert "The first 1 of them are in the store." in found.lines[2]


def test_a_limit_within_reach_is_called_enough(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds_of_training", lambda network, job: 0.0)
    monkeypatch.setattr(module, "_seconds_of_testing", lambda network, job: 0.0)
    wide = replace(job, recipe=replace(job.recipe, limits=Limits(max_drop=0.05)))
    assert make_plan(wide).lines[-1].endswith("the limit is 5: enough.")


def test_a_measured_step_leaves_the_seed_alone(job: Job) -> None:
    network, before = architecture.build(job.base), torch.random.get_rng_state()
    train, test = module._seconds_of_training(network, job), module._seconds_of_testing(network, job)
    assert train > 0 < test and torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert spoken(seconds) == words
