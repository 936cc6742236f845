"""The network that a training is taught by: frozen, without batch norms, and asked about mirror images where that is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.finetune import Finetune
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.pace import measure_pace
from edgewise.stages.training.settings import Training
from edgewise.stages.training.teaching import make_teacher, teacher_for

HOW = Training(epochs=2, lr=0.05, batch_size=16, distill=1.0, augment=Augment(crop=0), precision="32-true")
MIRRORED = replace(HOW, mirrored_teacher=True)
SPEC = Spec(name="corner", build=nn.Identity, input_shape=(1, 2, 2), mean=(0.0,), std=(1.0,), classifier="1")


class Corner(nn.Module):
    """Two classes from the upper left pixel: its value, and nothing."""

    def forward(self, images: Tensor) -> Tensor:
        value = images[:, 0, 0, 0]
        return torch.stack([value, torch.zeros_like(value)], 1)


def data(flip: bool) -> Data:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 2, 2), generator=draw).to(torch.uint8)
    part = MemoryPart(images, torch.arange(32) % 2)
    return in_memory("corners", part, part, part, ("a", "b"), flip=flip)


def test_a_mirrored_teacher_answers_with_the_mean_of_both() -> None:
    images = torch.tensor([[[[1.0, 5.0], [7.0, 9.0]]], [[[2.0, -4.0], [0.0, 0.0]]]])
    alone = make_teacher(Corner(), HOW, data(True), SPEC)(images)
    both = make_teacher(Corner(), MIRRORED, data(True), SPEC)(images)
    assert torch.equal(alone, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert torch.equal(both, torch.tensor([[3.0, 0.0], [-1.0, 0.0]]))


def test_it_is_frozen_and_without_batch_norms() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()
    for how in (HOW, MIRRORED):
        teacher = make_teacher(network, how, data(True), SPEC)
        assert not teacher.training and not any(tensor.requires_grad for tensor in teacher.parameters())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
        assert all(tensor.requires_grad for tensor in network.parameters()), "the network itself stays as it was"


def test_a_student_learns_what_the_mirrored_teacher_says(tmp_path: Path) -> None:
    """Of the upper pixels the teacher alone looks at the left one; with its mirror image, at both alike."""

    def learn_pixels(how: Training, folder: str) -> tuple[float, float]:
        (tmp_path / folder).mkdir()
        student = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        ctx = Context(spec=SPEC, data=data(True), scratch=tmp_path / folder, baseline=Corner())
        tuned = Finetune(training=replace(how, epochs=60, lr=0.5, weight_decay=0.0))(student, ctx)
        learnt = tuned.get_parameter("1.weight").detach()
        return float(learnt[0, 0] - learnt[1, 0]), float(learnt[0, 1] - learnt[1, 1])

    # Half of the images are shown mirrored, so that the right pixel says nothing of the teacher's answer.
    left, right = learn_pixels(HOW, "alone")
    assert left == pytest.approx(1, abs=0.1) and right == pytest.approx(0, abs=0.1)
    left, right = learn_pixels(MIRRORED, "both")
    assert left == pytest.approx(0.5, abs=0.05) and right == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("flips", "augment", "words"),
    [
        (False, Augment(), "these data say that a mirrored image may have another label"),
        (True, Augment(flip=False), "augment has flip=False"),
    ],
)
def test_mirror_images_that_are_not_shown_are_not_asked_about(flips: bool, augment: Augment, words: str) -> None:
    how = replace(MIRRORED, augment=augment)
    with pytest.raises(RequestError, match=words):
        make_teacher(Corner(), how, data(flips), SPEC)
    with pytest.raises(RequestError, match=words):  # the first minute measures a step, and says so before any training
        measure_pace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), how, data(flips), SPEC, "cpu", 0.01)


def test_who_says_that_mirror_images_keep_their_label_is_believed() -> None:
    make_teacher(Corner(), replace(MIRRORED, augment=Augment(flip=True)), data(False), SPEC)


def test_a_mirrored_teacher_without_distillation_is_refused() -> None:
    with pytest.raises(RequestError, match="there is none without distill"):
        replace(MIRRORED, distill=0.0)


def test_no_teacher_without_distillation_or_baseline(tmp_path: Path) -> None:
    ctx = Context(spec=SPEC, data=data(True), scratch=tmp_path)
    assert teacher_for(HOW, ctx) is None
    assert teacher_for(replace(HOW, distill=0.0), replace(ctx, baseline=Corner())) is None
    assert teacher_for(HOW, replace(ctx, baseline=Corner())) is not None
