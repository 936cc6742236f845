"""Networks as they come: wrapped, lazy, in half precision, writing into their input, ending with a softmax."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.network import checkpoint, surgery
from edgewise.network.architecture import Base
from edgewise.network.batch_mates import takes_batches
from edgewise.network.checkpoint import Checkpoint
from edgewise.network.probabilities import judge_ending, last_softmax
from edgewise.network.start import begin_network
from edgewise.network.unwrapped import unwrap_network

IMAGES = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def nested() -> nn.Module:
    model = plain()
    model[0] = nn.DataParallel(model[0])
    model[5] = torch.compile(model[5], backend="eager")
    return model


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "OptimizedModule": lambda: torch.compile(plain(), backend="eager"),
    "DataParallel": lambda: nn.DataParallel(plain()),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(plain()),
    "fx graph": lambda: torch.fx.symbolic_trace(plain()),
    "DataParallel and OptimizedModule": nested,
    "OptimizedModule and DataParallel": lambda: torch.compile(nn.DataParallel(plain()), backend="eager"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_wrapper_is_taken_off(kind: str) -> None:
    found = unwrap_network(WRAPPED[kind](), "net")
    assert list(found.model.state_dict()) == list(plain().state_dict())
    assert all(part in " ".join(found.told) for part in kind.split(" and "))
    again = copy.deepcopy(found.model).train().eval()
    assert again(IMAGES).shape == (3, 3)
    torch.export.export(again, (IMAGES,))


def test_nothing_is_said_of_a_plain_network() -> None:
    model = plain()
    found = unwrap_network(model, "net")
    assert found.model is model and found.told == ()


def test_shared_batch_norms_become_ordinary_ones() -> None:
    torch.manual_seed(0)
    model = plain()
    expected = model.eval()(IMAGES)
    found = unwrap_network(nn.SyncBatchNorm.convert_sync_batchnorm(model), "net")
    assert found.told == ("1 SyncBatchNorm is taken as BatchNorm2d",)
    assert [type(m) for m in found.model.modules()].count(nn.BatchNorm2d) == 1
    torch.testing.assert_close(found.model.eval()(IMAGES), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_other_precisions_are_taken_in_float32_and_said(kind: torch.dtype) -> None:
    found = unwrap_network(plain().to(kind), "net")
    assert {t.dtype for t in found.model.state_dict().values()} == {torch.float32, torch.int64}
    assert str(kind).removeprefix("torch.") in found.told[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_holds_no_values_or_no_structure_is_refused() -> None:
    with pytest.raises(RequestError, match=r"meta device"), torch.device("meta"):
        unwrap_network(plain(), "net")
    with pytest.raises(RequestError, match="TorchScript"):
        unwrap_network(nn.Sequential(torch.jit.script(plain())), "net")


SOURCE = """
import torch
from torch import nn

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))

def unreached():
    model = lazy()
    model.side = nn.LazyLinear(3)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    return model

class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return self.fc((x + torch.relu_(x)).flatten(1))

def softmax():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(-1))

class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return torch.softmax(self.fc(x.flatten(1)), 1)

class Fails(nn.Module):
    def forward(self, x):
        return x.reshape(7, 7)

def broken():
    return undefined
"""


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], Base]:
    (tmp_path / "mine.py").write_text(SOURCE)
    return lambda name: Base(f"{tmp_path}/mine.py:{name}", 3, 1)


def test_lazy_layers_get_their_shapes_and_come_back_from_disk(mine: Callable[[str], Base], tmp_path: Path) -> None:
    begun = begin_network(mine("lazy"), IMAGES)
    assert begun.model[3].in_features == 4 * 4 * 4
    assert begun.told == ("3 lazy layers were given their shapes by an image (1, 6, 6)",)
    checkpoint.save(Checkpoint(mine("lazy"), begun.model), tmp_path / "kept")
    again = checkpoint.load(tmp_path / "kept").model
    assert torch.equal(again(IMAGES), begun.model(IMAGES))


def test_a_lazy_layer_that_no_image_reaches_is_named(mine: Callable[[str], Base]) -> None:
    with pytest.raises(RequestError, match=r"'side' \(LazyLinear\)"):
        begin_network(mine("unreached"), IMAGES)


def test_a_network_that_writes_into_its_input_is_handed_a_copy(mine: Callable[[str], Base], tmp_path: Path) -> None:
    begun = begin_network(mine("Writes"), IMAGES)
    given = IMAGES.clone()
    answer = begun.model(given)
    assert torch.equal(given, IMAGES)
    checkpoint.save(Checkpoint(mine("Writes"), begun.model), tmp_path / "kept")
    again = checkpoint.load(tmp_path / "kept").model
    assert torch.equal(again(given), answer) and torch.equal(given, IMAGES)
    torch.testing.assert_close(answer, begun.model.fc(2 * IMAGES.relu().flatten(1)))


def test_a_softmax_layer_at_the_end_goes_behind_the_network(mine: Callable[[str], Base]) -> None:
    begun = begin_network(mine("softmax"), IMAGES)
    assert begun.gave_probabilities and begun.ending == "logits" and "'2'" in begun.told[-1]
    assert not torch.allclose(begun.model(IMAGES).sum(1), torch.ones(3))


def test_a_softmax_inside_the_code_is_seen(mine: Callable[[str], Base]) -> None:
    begun = begin_network(mine("Inside"), IMAGES)
    assert not begun.gave_probabilities and begun.ending == "probabilities"


@pytest.mark.parametrize(
    ("last", "expected"),
    [(nn.Softmax(1), "probabilities"), (nn.LogSoftmax(1), "log-probabilities"), (nn.Sigmoid(), "logits")],
)
def test_endings(last: nn.Module, expected: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), last).eval()
    assert judge_ending(model, IMAGES[:1]) == expected
    assert last_softmax(model, IMAGES[:1]) == ("2" if expected == "probabilities" else None)


def test_failures_name_the_users_line(mine: Callable[[str], Base]) -> None:
    with pytest.raises(
        RequestError, match=r"fails on an image: shape .*mine\.py, line \d+ \(return x\.reshape\(7, 7\)\)"
    ):
        begin_network(mine("Fails"), IMAGES)
    with pytest.raises(RequestError, match=r"could not be built: NameError.*mine\.py, line \d+ \(return undefined\)"):
        begin_network(mine("broken"), IMAGES)


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Restless(nn.Module):
    """A dropout that does not rest in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


class Trained(nn.BatchNorm2d):
    """A batch norm that always works as in training."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), r"'1', a BatchNorm2d \(batch_norm"),
        (Trained(4), r"'1', a Trained \(batch_norm"),
        (Centred(), r"'1', a Centred \(sub"),
    ],
)
def test_what_depends_on_the_batch_is_named(layer: nn.Module, told: str) -> None:
    with pytest.raises(RequestError, match=f"layer {told}.*other images of its batch"):
        takes_batches(nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(64, 3)).eval(), IMAGES)


def test_answers_that_are_no_numbers_are_not_taken_for_chance() -> None:
    model = plain().eval()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert takes_batches(model, IMAGES)


def test_what_draws_random_numbers_is_named() -> None:
    with pytest.raises(RequestError, match=r"'0', a Restless \(dropout.*random numbers"):
        takes_batches(nn.Sequential(Restless(), nn.Flatten()).eval(), IMAGES)


class One(nn.Module):
    """A batch of one, written into the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 36)


def test_batches_of_one_and_of_any_size() -> None:
    assert not takes_batches(One(), IMAGES)
    assert takes_batches(nn.Sequential(nn.Dropout(), nn.InstanceNorm2d(1), nn.Flatten()).eval(), IMAGES)
    assert takes_batches(plain().eval(), IMAGES[:1])


def test_surgery_of_a_start_is_in_its_history(mine: Callable[[str], Base]) -> None:
    assert [type(op).__name__ for op in surgery.history(begin_network(mine("lazy"), IMAGES).model)] == ["Materialise"]


class Heads(nn.Module):
    """Self-attention in the way most vision transformers are written: queries, keys and values are the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(len(x), 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = (query @ key.mT).softmax(-1) @ value
        answers: Tensor = self.head(mixed.transpose(1, 2).flatten(2).mean(1))
        return answers


class Mixed(Heads):
    """Normalised over the batch before it answers with zeros, as an untrained classifier may."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean(0)) / x.std(0, correction=0).add(1)) * 0.0


def test_a_first_dimension_as_long_as_the_batch_is_not_taken_for_one() -> None:
    torch.manual_seed(0)
    assert takes_batches(Heads().eval(), IMAGES)


def test_what_the_answers_cannot_tell_the_layers_do() -> None:
    torch.manual_seed(0)
    with pytest.raises(RequestError, match="depend on the other images"):
        takes_batches(Mixed().eval(), IMAGES)
