"""A teacher that remembers: asked about each view of an image once, also after a kill, and among processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise.stages.training.teacher import Teacher


class Counting(nn.Module):
    """Counts the images it is asked about; two classes from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


class Alone:
    """What a Teacher wants of Fabric, one process."""

    world_size, is_global_zero = 1, True


class Pair:
    """The same, of two processes whose other one knows ``theirs`` and was asked too."""

    world_size, is_global_zero, device = 2, True, torch.device("cpu")

    def __init__(self, theirs: Tensor) -> None:
        self.theirs = theirs

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, self.theirs if tensor.ndim else torch.tensor(1.0)])


def test_it_is_asked_about_each_view_once(tmp_path: Path) -> None:
    network, images = Counting(), torch.arange(8.0).reshape(8, 1, 1, 1)
    teacher = Teacher(network, views=2, images=8, folder=tmp_path)
    which = torch.tensor([2, 3, 5])
    first = teacher.answer(images[which], which, epoch=0)
    assert torch.equal(first, torch.tensor([[2.0, -2.0], [3.0, -3.0], [5.0, -5.0]])) and network.asked == 3
    # The third epoch shows what the first one did, in any order.
    again = teacher.answer(images[which.flip(0)], which.flip(0), epoch=2)
    assert torch.equal(again, first.flip(0)) and network.asked == 3
    # The second one shows other pictures.
    teacher.answer(images[which] + 1, which, epoch=1)
    assert network.asked == 6
    assert torch.equal(teacher.answer(images[which], which, epoch=3), first + torch.tensor([1.0, -1.0]))
    # One new image among known ones.
    teacher.answer(images[:4], torch.arange(4), epoch=0)
    assert network.asked == 10


def test_without_views_it_is_always_asked(tmp_path: Path) -> None:
    network = Counting()
    teacher = Teacher(network, views=0, images=8, folder=tmp_path)
    for epoch in (0, 0, 1):
        teacher.answer(torch.zeros(4, 1, 1, 1), torch.arange(4), epoch)
    teacher.end_epoch(Alone(), 0)
    assert network.asked == 12 and not [*tmp_path.iterdir()]


def test_it_remembers_after_a_kill(tmp_path: Path) -> None:
    images, which = torch.arange(8.0).reshape(8, 1, 1, 1), torch.arange(8)
    first = Teacher(Counting(), views=2, images=8, folder=tmp_path)
    wanted = first.answer(images, which, 0)
    first.end_epoch(Alone(), 0)
    network = Counting()
    second = Teacher(network, views=2, images=8, folder=tmp_path)
    assert torch.equal(second.answer(images, which, 2), wanted) and network.asked == 0


def test_processes_share_what_they_asked(tmp_path: Path) -> None:
    network, images = Counting(), torch.arange(4.0).reshape(4, 1, 1, 1)
    teacher = Teacher(network, views=1, images=4, folder=tmp_path)
    teacher.answer(images[:2], torch.arange(2), 0)
    theirs = torch.tensor([[torch.nan] * 2, [torch.nan] * 2, [2.0, -2.0], [3.0, -3.0]])
    teacher.end_epoch(Pair(theirs), 0)
    assert torch.equal(teacher.answer(images, torch.arange(4), 1), torch.stack([images, -images], 1).reshape(4, 2))
    assert network.asked == 2
