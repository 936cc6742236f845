"""Architecture: registered names, the user's own files, and weights that are only ever tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgewise.errors import RequestError
from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.network.weights import load_weights

SOURCE = """
from torch import nn
mean = (0.1, 0.2, 0.3)
std = (0.4, 0.5, 0.6)
input_shape = (3, 16, 16)
classifier = "0"
def net(num_classes):
    "A net."
    return nn.Sequential(nn.Conv2d(3, num_classes, 1))
def other():
    return 3
"""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def filled(model: nn.Module, path: Path) -> bool:
    target = net()
    load_weights(target, path)
    return all(torch.equal(t, model.state_dict()[k]) for k, t in target.state_dict().items())


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module.", "module. under state_dict"])
def test_weights_in_every_common_form(tmp_path: Path, form: str) -> None:
    model, path = net(), tmp_path / "w.pt"
    state: dict[str, Any] = dict(model.state_dict())
    if form.startswith("module."):
        state = {f"module.{k}": v for k, v in state.items()}
    if form.endswith("state_dict"):
        state = {"state_dict": state, "epoch": 3}
    if form == "model":
        state = {"model": state}
    torch.save(state, path)
    assert filled(model, path)


def test_weights_from_safetensors(tmp_path: Path) -> None:
    model = net()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert filled(model, tmp_path / "w.safetensors")


def test_weights_without_batch_counters_fit(tmp_path: Path) -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    load_weights(net(), tmp_path / "w.pt")


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    torch.save(state, tmp_path / "w.pt")
    target = net()
    before = target[1].running_mean.clone()
    with pytest.raises(RequestError) as caught:
        load_weights(target, tmp_path / "w.pt")
    text = str(caught.value)
    assert "missing (1):\n    0.bias" in text and "unexpected (1):\n    extra" in text
    assert "0.weight: wanted [2, 1, 3, 3], found [2, 1, 5, 5]" in text
    assert torch.equal(target[1].running_mean, before)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "harm")}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match="never executed"):
        load_weights(net(), tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


def test_a_file_that_is_not_there_or_not_weights(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no weights file"):
        load_weights(net(), tmp_path / "none.pt")
    (tmp_path / "w.safetensors").write_bytes(b"\x00\x01not tensors")
    with pytest.raises(RequestError, match="not a readable"):
        load_weights(net(), tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"wanted a state dict.*epoch"):
        load_weights(net(), tmp_path / "w.pt")


def test_a_users_file_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    reference = f"{tmp_path}/mine.py:net"
    spec = architecture.spec_of(reference)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (spec.input_shape, spec.classifier, spec.summary) == ((3, 16, 16), "0", "A net.")
    built = architecture.build(Base(reference, num_classes=7, in_channels=3))
    assert built(torch.zeros(1, 3, 4, 4)).shape == (1, 7, 4, 4)
    with pytest.raises(RequestError, match=r"returned int; wanted a torch\.nn\.Module"):
        architecture.build(Base(f"{tmp_path}/mine.py:other", 7, 3))


def test_a_users_file_may_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 3), nn.ReLU())\n"
    )
    spec = architecture.spec_of(f"{tmp_path}/plain.py:net")
    assert (spec.mean, spec.std, spec.classifier) == ((0.5,), (0.5,), "")
    assert architecture.classifier_of(spec.build(), spec) == "0"
    with pytest.raises(RequestError, match="no linear or convolutional"):
        architecture.classifier_of(nn.ReLU(), spec)


def test_wrong_references_are_told(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("def first(): ...\ndef second(): ...\n")
    (tmp_path / "bad.py").write_text("raise KeyError('oops')\n")
    with pytest.raises(RequestError, match="no function 'third'; it defines: first, second"):
        architecture.spec_of(f"{tmp_path}/two.py:third")
    with pytest.raises(RequestError, match="there is no file"):
        architecture.spec_of(f"{tmp_path}/none.py:net")
    for _ in range(2):  # a failed import leaves nothing behind that a second try would take for the module
        with pytest.raises(RequestError, match="could not be imported: KeyError"):
            architecture.spec_of(f"{tmp_path}/bad.py:net")


SETTINGS = """
from pathlib import Path
from torch import nn
def build():
    kind = Path(__file__).with_name("kind.txt").read_text()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), getattr(nn, kind)())
    net.extra_repr = lambda: repr(build)
    return net
"""


def test_layers_that_a_file_of_settings_chose_are_part_of_what_a_network_is(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SETTINGS, encoding="utf-8")
    digests = []
    for kind in ("ReLU", "GELU", "ReLU"):
        (tmp_path / "kind.txt").write_text(kind, encoding="utf-8")
        torch.manual_seed(3)
        base = architecture.describe_base(f"{tmp_path / 'net.py'}:build", 10, 1)
        digests.append(base.layers)
        assert torch.initial_seed() == 3 and torch.equal(
            torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3))
        )
    assert digests[0] == digests[2] != digests[1]
    assert architecture.describe_base("lenet5", 10, 1) == Base("lenet5", 10, 1)
