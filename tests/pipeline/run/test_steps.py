"""The steps of a run, each by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgewise.report.watch import Watch
from edgewise.run.steps import Steps
from edgewise.store.entries import Store


class Photographs:
    """300 images of 3 × 224 × 224."""

    labels = torch.zeros(300, dtype=torch.int64)

    def __len__(self) -> int:
        return 300

    def batch(self, index: Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8).expand(len(index), 3, 224, 224)


@pytest.mark.parametrize("by_batches", [True, False])
def test_a_test_set_of_photographs_is_not_taken_whole(by_batches: bool, tmp_path: Path) -> None:
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.zeros(len(images), 2)

    job: Any = SimpleNamespace(
        data=SimpleNamespace(test=Photographs(), digest="photographs"),
        spec=SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3),
        by_batches=by_batches,
    )
    found, _ = Steps(job=job, store=Store(tmp_path), watch=Watch(quiet=True)).answers(network, "net", "net")
    assert found.shape == (300, 2) and max(sizes) == (6 if by_batches else 1)
