"""Training in two processes, on the CPU: the gradients are averaged, and the result comes back; so of a captured graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from edgewise import calib_data, models, targets
from edgewise.measure.answers import compute_logits
from edgewise.stage import Context
from edgewise.stages.fold import Fold
from edgewise.stages.quantize import Quantize
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    spec, data = models.get("tiny_resnet"), calib_data.load("digits")
    torch.manual_seed(0)
    network = spec.build(num_classes=10, in_channels=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    how = Training(epochs=2, lr=0.05, batch_size=64, devices=2, precision="32-true", augment=Augment(crop=0))
    fit(network, how, Context(spec=spec, data=data, scratch=tmp_path), None)
    after = network.state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    steps = {int(tensor) for name, tensor in after.items() if name.endswith("num_batches_tracked")}
    assert steps == {2 * -(-len(data.train) // 64)}, "each process counts its own steps, in memory of its own"
    right = compute_logits(network, data.test, spec).argmax(1) == data.test.labels
    assert right.float().mean() > 0.5


@pytest.mark.slow
def test_two_processes_share_what_the_teacher_answered(tmp_path: Path) -> None:
    """Each remembers its half of an epoch; the file holds both, so that no image is missing in the second epoch."""
    spec, data = models.get("tiny_resnet"), calib_data.load("digits")
    torch.manual_seed(0)
    network = spec.build(num_classes=10, in_channels=1)
    how = Training(
        epochs=1, lr=0.05, batch_size=64, distill=0.9, views=2, devices=2, precision="32-true", augment=Augment(crop=1)
    )
    fit(network, how, Context(spec=spec, data=data, scratch=tmp_path), spec.build(num_classes=10, in_channels=1).eval())
    with safe_open(tmp_path / "answers.safetensors", "pt") as file:
        assert set(file.keys()) == {"0"}
        answers = file.get_tensor("0")
    assert answers.shape == (len(data.train), 10)
    missing = answers.isnan().any(1).sum()
    assert missing <= 1, "a last batch of one image is not trained on"


@pytest.mark.slow
@pytest.mark.parametrize("learn", [False, True])
def test_two_processes_train_a_captured_graph(tmp_path: Path, learn: bool, capfd: pytest.CaptureFixture[str]) -> None:
    spec, data = models.get("tiny_resnet"), calib_data.load("digits")
    torch.manual_seed(0)
    network = spec.build(num_classes=10, in_channels=1)
    once = Training(epochs=4, lr=0.05, batch_size=64, precision="32-true", augment=Augment(crop=0))
    (tmp_path / "float").mkdir()
    fit(network, once, Context(spec=spec, data=data, scratch=tmp_path / "float"), None)
    accuracy = {}
    capfd.readouterr()
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        context = Context(spec=spec, data=data, scratch=folder, grid=targets.Grid(weight_bits=7), baseline=network)
        trained = Quantize(
            training=replace(once, epochs=2, lr=0.001, devices=devices, distill=0.5), learn_ranges=learn, sensitivity=0
        )(Fold()(network, context), context)
        accuracy[devices] = (compute_logits(trained, data.test, spec).argmax(1) == data.test.labels).float().mean()
    assert accuracy[2] > 0.9 and abs(accuracy[1] - accuracy[2]) < 0.02
    written = "".join(capfd.readouterr())
    for word in ("Initializing distributed", "Failed to load", "KernelPreference", "Warning"):
        assert word not in written, "the other processes keep quiet too"
