"""Training in two processes, on the CPU: the gradients are averaged, and the result comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import calib_data
import models
from pipeline.images import logits
from pipeline.recipe import Context
from pipeline.training import Augment, Training, fit


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    spec, data = models.get("tiny_resnet"), calib_data.load("digits")
    torch.manual_seed(0)
    network = spec.build(num_classes=10, in_channels=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    how = Training(epochs=2, lr=0.05, batch_size=64, devices=2, precision="32-true", augment=Augment(crop=0))
    fit(network, how, Context(spec=spec, data=data, scratch=tmp_path), None)
    assert any(not torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    right = logits(network, data.test, spec).argmax(1) == data.test.labels
    assert right.float().mean() > 0.5
