"""What a training step takes: measured warm, in the batch and the arithmetic that it will have."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgewise import calib_data, models
from edgewise.errors import RequestError
from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.stages.training import pace as module
from edgewise.stages.training.pace import measure_pace
from edgewise.stages.training.settings import Training, resolve_precision

DATA = calib_data.load("digits", 0)
SPEC = models.get("tiny_resnet")


def test_a_measurement_leaves_seed_and_network_alone() -> None:
    network, before = architecture.build(Base("tiny_resnet", 10, 1)).eval(), torch.random.get_rng_state()
    weights = [parameter.clone() for parameter in network.parameters()]
    how = Training(epochs=1, lr=0.1, batch_size=16, distill=0.5)
    pace = measure_pace(network, how, DATA, SPEC, "cpu", 0.2)
    assert pace.train > 0 < pace.ask and 8 <= pace.batch <= 16
    assert pace.precision == resolve_precision("auto", "cpu")
    assert torch.equal(torch.random.get_rng_state(), before) and not network.training
    assert all(torch.equal(old, new) for old, new in zip(weights, network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_cold_steps_do_not_count_and_the_batch_fits_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images take 8 s cold and 0.08 s warm, so that 5 steps of 66 fit into 3.325 s; the first of 66 is cold again."""
    asked: list[int] = []

    def train(steps: object, count: int) -> float:
        asked.append(count)
        return (1.0 if asked.count(count) == 1 else 0.01) * count

    monkeypatch.setattr(module._Steps, "train", train)
    monkeypatch.setattr(module._Steps, "make", lambda steps, count: 0.0)
    network = architecture.build(Base("tiny_resnet", 10, 1))
    pace = measure_pace(network, Training(epochs=1, lr=0.1), DATA, SPEC, "cpu", 3.325)
    assert (pace.batch, pace.ask) == (66, 0.0) and pace.train == pytest.approx(0.01)
    assert asked[:3] == [8, 8, 66] and len(asked) >= 4


def test_images_that_are_made_slower_than_they_are_trained_on_set_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Steps, "train", lambda steps, count: 0.01 * count)
    monkeypatch.setattr(module._Steps, "make", lambda steps, count: 0.05 * count)
    network = architecture.build(Base("tiny_resnet", 10, 1))
    assert measure_pace(network, Training(epochs=1, lr=0.1), DATA, SPEC, "cpu", 1.0).train == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("threads", "used", "own"),
    [(1, 9.5, 10.0), (1, 2.0, 2.0), (4, 24.0, 10.0), (4, 8.0, 2.0)],
    ids=["alone", "a fifth of the processor", "threads that wait for each other", "a fifth of four"],
)
def test_what_others_take_of_the_processors_does_not_count(
    monkeypatch: pytest.MonkeyPatch, threads: int, used: float, own: float
) -> None:
    """10 s pass; ``used`` seconds of processors are this process's."""
    passed, spent = iter((0.0, 10.0)), iter((0.0, used))
    times = SimpleNamespace(perf_counter=lambda: next(passed), process_time=lambda: next(spent))
    monkeypatch.setattr(module, "time", times)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    clock = module.Clock(torch.device("cpu"))
    assert clock.time(lambda: None) == own and clock.slowed == 10.0 / own


def test_a_network_that_does_not_compute_in_mixed_precision_is_measured_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.conv(x)
            return self.fc(torch.lerp(features, torch.ones(features.shape), 0.5).mean((2, 3)))

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    how = Training(epochs=1, lr=0.1, batch_size=16, distill=0.5)
    assert measure_pace(Strict(), how, DATA, SPEC, "cpu", 0.1).precision == "32-true"
    with pytest.raises(RequestError, match="'bf16-mixed' was asked for"):
        measure_pace(Strict(), dataclasses.replace(how, precision="bf16-mixed"), DATA, SPEC, "cpu", 0.1)
