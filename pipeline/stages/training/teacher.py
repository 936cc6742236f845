"""The teacher of a distillation: asked about every image, or its answers remembered.

Half of what a fine-tune with a much smaller student computes is the teacher. Where each image comes in a few fixed views
(each with its own random change) that take turns, the teacher need be asked about a view only once: fast knowledge
distillation, Shen and Xing 2021, arXiv 2112.01528.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgewise.store.whole import write_whole

_FILE = "answers.safetensors"


class Teacher:
    """A frozen network, and what it answered about each view of each training image.

    ``views`` 0 remembers nothing. Otherwise it holds views x images x classes numbers of 4 bytes, in memory and, after
    every epoch, in ``folder``.
    """

    def __init__(self, network: nn.Module, *, views: int, images: int, folder: Path) -> None:
        self.network, self.views, self.images, self.folder = network, views, images, folder
        self._answers: dict[int, Tensor] = _read_tables(folder) if views else {}
        self._news = False

    @torch.no_grad()
    def answer(self, images: Tensor, which: Tensor, epoch: int) -> Tensor:
        """Logits [B, classes] about ``images`` [B, ...], the training images ``which`` (int64 [B]) as ``epoch`` shows them."""
        if not self.views:
            return self._ask(images)
        table = self._answers.get(epoch % self.views)
        answers = None if table is None else table[which]
        if answers is not None and not answers.isnan().any():
            return answers.to(images.device)
        fresh = self._ask(images)
        if table is None:
            table = self._answers[epoch % self.views] = torch.full((self.images, fresh.shape[1]), torch.nan)
        table[which] = fresh.float().cpu()
        self._news = True
        return fresh

    def end_epoch(self, fabric: Any, epoch: int) -> None:
        """Share what was learnt among the processes, and keep it for a training that goes on after a kill."""
        table = self._answers.get(epoch % self.views) if self.views else None
        if table is None or not self._anyone(fabric):
            return
        if fabric.world_size > 1:
            for theirs in fabric.all_gather(table.to(fabric.device)).cpu():
                torch.where(table.isnan(), theirs, table, out=table)
        if fabric.is_global_zero:
            write_whole(self.folder / _FILE, save({str(view): rows for view, rows in self._answers.items()}))
        self._news = False

    def _ask(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images)
        return answer

    def _anyone(self, fabric: Any) -> bool:
        """Whether any process has asked its teacher in this epoch."""
        if fabric.world_size == 1:
            return self._news
        return bool(fabric.all_gather(torch.tensor(float(self._news), device=fabric.device)).any())


def _read_tables(folder: Path) -> dict[int, Tensor]:
    path = folder / _FILE
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        return {int(view): file.get_tensor(view) for view in file.keys()}  # noqa: SIM118
