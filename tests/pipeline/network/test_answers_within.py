"""Networks that answer with more than logits: these are found in the answer, in every form, or the places are named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.network import checkpoint
from edgewise.network.answers_within import logits_within
from edgewise.network.architecture import Base
from edgewise.network.checkpoint import Checkpoint
from edgewise.network.start import begin_network

LOGITS, FEATURES = torch.randn(1, 3), torch.randn(1, 8)


class Pair(NamedTuple):
    features: Tensor
    out: Tensor


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


FORMS: dict[str, tuple[Any, list[str | int]]] = {
    "dict": ({"out": LOGITS, "features": FEATURES}, ["out"]),
    "ordered dict": (OrderedDict(loss=None, logits=LOGITS), ["logits"]),
    "tuple": ((LOGITS, FEATURES), [0]),
    "list": ([FEATURES, LOGITS], [1]),
    "named tuple": (Pair(FEATURES, LOGITS), [1]),
    "object with fields": (Output(LOGITS), ["logits"]),
    "nested": ({"heads": (LOGITS,), "features": [FEATURES]}, ["heads", 0]),
    "several, one called logits": ({"aux": LOGITS, "logits": LOGITS}, ["logits"]),
    "several, one called out": ({"aux": LOGITS, "out": LOGITS}, ["out"]),
    "probabilities before logits": ((LOGITS.softmax(1), LOGITS), [1]),
    "logits and their logarithms": ({"scores": LOGITS, "log": LOGITS.log_softmax(1)}, ["scores"]),
    "any object": (SimpleNamespace(loss=None, scores=LOGITS), ["scores"]),
    "pixels": (LOGITS[:, :, None, None], []),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found_in_every_form(form: str) -> None:
    answer, path = FORMS[form]
    found = logits_within(answer, 3, "net")
    assert found is not None and list(found.path) == path and found.flat == (form == "pixels")


def test_an_answer_of_logits_and_one_without_any_stay_as_they_are() -> None:
    assert logits_within(LOGITS, 3, "net") is None
    assert logits_within({"features": FEATURES, "labels": torch.tensor([[1, 2, 3]])}, 3, "net") is None


def test_logits_alone_in_training_stay_as_they_are() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y if self.training else (y.softmax(1), y)

    model = Both(8, 3)
    expected = model.train()(FEATURES)
    take = logits_within(model.eval()(FEATURES), 3, "net")
    assert take is not None
    take(model)
    assert torch.equal(model(FEATURES), expected) and torch.equal(model.train()(FEATURES), expected)


def test_several_that_may_be_meant_are_named() -> None:
    with pytest.raises(RequestError, match=r"2 tensors of 3 values for an image \(\['main'\], \['side'\]\[0\]\)"):
        logits_within({"main": LOGITS, "side": [LOGITS]}, 3, "net")


SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)

    def forward(self, pixels=None, output_hidden=False):
        x = self.conv(pixels).relu()
        return {"hidden": x, "logits": self.head(x.mean((2, 3), keepdim=True))}
"""


def test_such_a_network_goes_to_disk_and_through_a_capture(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    base, images = Base(f"{tmp_path}/net.py:Net", 3, 1), torch.randn(2, 1, 6, 6)
    begun = begin_network(base, images)
    assert any("['logits'] of what the network answers" in sentence for sentence in begun.told)
    checkpoint.save(Checkpoint(base, begun.model), tmp_path / "kept")
    network: Callable[[Tensor], Tensor] = checkpoint.load(tmp_path / "kept").model
    answers = network(images)
    assert answers.shape == (2, 3)
    assert torch.export.export(begun.model, (images,)).module()(images).allclose(answers)
