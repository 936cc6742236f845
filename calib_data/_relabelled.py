"""A data set whose classes are numbered as somebody else numbers them: a network, or a file's card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.calib_data import Data, Part
from edgewise.calib_data._class_lists import match_names


@dataclass(frozen=True, eq=False)
class RelabelledPart:
    """A part's images under other numbers."""

    source: Part
    labels: Tensor
    """int64 [N]; −1: unlabelled."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""
        return self.source.batch(index)


def renumber(data: Data, classes: Sequence[str]) -> Data:
    """``data`` with the labels that its classes have in ``classes``; itself where they are the same.

    Classes without an image need no counterpart. Raises DataError as ``match_names`` where one with images has none.
    """
    if tuple(classes) == data.classes:
        return data
    numbers = sorted({number for part in (data.train, data.calib, data.test) for number in part.labels.tolist()} - {-1})
    numbers_in_list = match_names([data.classes[number] for number in numbers], classes, data.name)
    pairs = [(number, numbers_in_list.index[data.classes[number]]) for number in numbers]
    same = len(classes) == len(data.classes) and all(before == after for before, after in pairs)
    text = f"{data.digest} as {json.dumps(pairs)} of {len(classes)}"
    table = torch.full((len(data.classes) + 1,), -1, dtype=torch.int64)
    for before, after in pairs:
        table[before] = after
    return dataclasses.replace(
        data,
        train=RelabelledPart(data.train, table[data.train.labels]),
        calib=RelabelledPart(data.calib, table[data.calib.labels]),
        test=RelabelledPart(data.test, table[data.test.labels]),
        classes=tuple(classes),
        digest=data.digest if same else hashlib.sha256(text.encode()).hexdigest(),
        notes=(*data.notes, *([numbers_in_list.note] if numbers_in_list.note else [])),
        listed=True,
    )
