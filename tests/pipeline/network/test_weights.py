"""Checkpoints in the forms that people save: one reading fits and is taken, or the nearest is told with its misfits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from edgewise.errors import RequestError
from edgewise.network.weights import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def state(value: float = 0.5) -> State:
    return {k: torch.full_like(v, value) if v.is_floating_point() else v for k, v in network().state_dict().items()}


def prefixed(prefix: str, value: float = 0.5) -> State:
    return {prefix + name: tensor for name, tensor in state(value).items()}


FORMS: dict[str, Callable[[], Any]] = {
    "tutorial": lambda: {"epoch": 3, "model_state_dict": state(), "loss": 0.1},
    "net and accuracy": lambda: {"net": prefixed("module."), "acc": 91.2, "epoch": 4},
    "training script with its arguments": lambda: {"model": state(), "args": argparse.Namespace(lr=0.1)},
    "a metric of NumPy's": lambda: {"state_dict": state(), "best": np.float64(0.9)},
    "compiled": lambda: prefixed("_orig_mod."),
    "compiled in parallel": lambda: {"state_dict": prefixed("module._orig_mod.")},
    "compiled inside": lambda: {k.replace("1.", "1._orig_mod.", 1): v for k, v in state().items()},
    "Lightning": lambda: {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}, "epoch": 3},
    "Lightning, stacked": lambda: {"state_dict": prefixed("net.module._orig_mod.")},
    "averaged": lambda: prefixed("module.") | {"n_averaged": torch.tensor(3)},
    "a lone dict in a dict": lambda: {"checkpoint": {"weights": state()}},
    "average beside the same": lambda: {"state_dict": state(), "state_dict_ema": prefixed("module.")},
    "with an optimizer": lambda: {"model": state(), "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "a pair": lambda: (4, state()),
    "arrays": lambda: {k: v.numpy() for k, v in state().items()},
    "paths and dates": lambda: {"model": state(), "args": {"out": Path("runs"), "at": datetime(2020, 1, 1)}},
    "a profiler's counts": lambda: state() | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "half": lambda: {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt")
    assert all(bool((t == 0.5).all()) for t in model.state_dict().values() if t.is_floating_point())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "module.net.", "model.net._orig_mod."])
def test_a_network_that_wraps_another_takes_the_inner_one_s_weights(prefix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(prefix)}, tmp_path / "w.pt")
    model = Wrapped()
    told = load_weights(model, tmp_path / "w.pt")
    assert float(model.net[0].bias.detach()[0]) == 0.5
    assert ("for the part 'net.' that is the whole network" in told) == ("net" not in prefix)


def test_weights_of_something_else_are_refused_by_a_network_that_wraps_another(tmp_path: Path) -> None:
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match="do not fit the model"):
        load_weights(Wrapped(), tmp_path / "w.pt")


def test_it_is_said_how_it_was_read(tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}}, tmp_path / "w.pt")
    told = load_weights(network(), tmp_path / "w.pt")
    assert told == (
        "weights read under 'state_dict', without the prefix 'model.'; 1 tensors beside them are not the network's"
    )


def test_of_two_that_fit_the_person_says_which(tmp_path: Path) -> None:
    torch.save({"state_dict": state(1.0), "state_dict_ema": state(2.0)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"2 sets of weights.*w\.pt#state_dict_ema'"):
        load_weights(network(), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt#state_dict_ema")
    assert float(model[0].bias.detach()[0]) == 2
    with pytest.raises(RequestError, match="no tensors under 'ema'; there are: 'state_dict', 'state_dict_ema'"):
        load_weights(network(), tmp_path / "w.pt#ema")


def test_a_teacher_and_a_student_under_prefixes(tmp_path: Path) -> None:
    torch.save(prefixed("student.", 1.0) | prefixed("teacher.", 2.0), tmp_path / "w.pt")
    with pytest.raises(RequestError, match="Say which one"):
        load_weights(network(), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt#teacher")
    assert float(model[0].bias.detach()[0]) == 2


def test_normalised_weights_under_their_old_names(tmp_path: Path) -> None:
    model = nn.Sequential(weight_norm(nn.Linear(2, 3)))
    torch.save(
        {"0.bias": torch.ones(3), "0.weight_g": torch.ones(3, 1), "0.weight_v": torch.ones(3, 2)}, tmp_path / "w.pt"
    )
    load_weights(model, tmp_path / "w.pt")
    torch.testing.assert_close(model[0].weight, torch.full((3, 2), 0.5**0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    broken = state()
    broken["3.weight"][1, 0] = value
    torch.save(broken, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"3\.weight holds 1 of 6 values that are not finite"):
        load_weights(network(), tmp_path / "w.pt")


def test_another_head_is_told_with_both_numbers_of_classes(tmp_path: Path) -> None:
    torch.save(state() | {"3.weight": torch.zeros(1000, 2), "3.bias": torch.zeros(1000)}, tmp_path / "w.pt")
    with pytest.raises(RequestError) as caught:
        load_weights(network(), tmp_path / "w.pt")
    text = str(caught.value)
    assert "3.weight: wanted [3, 2], found [1000, 2]" in text
    assert "trained for 1000 classes" in text and "the 3 classes of the data" in text


def test_the_nearest_reading_is_told_with_its_misfits(tmp_path: Path) -> None:
    found = {"state_dict": prefixed("model."), "other": {"a": torch.ones(1)}}
    del found["state_dict"]["model.0.bias"]
    torch.save(found, tmp_path / "w.pt")
    with pytest.raises(RequestError) as caught:
        load_weights(network(), tmp_path / "w.pt")
    text = str(caught.value)
    assert "read under 'state_dict', without the prefix 'model.', the nearest" in text
    assert "missing (1):\n    0.bias" in text and "unexpected" not in text


def test_other_widths_are_no_other_classes(tmp_path: Path) -> None:
    torch.save(state() | {"0.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match="same architecture with other widths"):
        load_weights(network(), tmp_path / "w.pt")


def script(path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)


OTHER: dict[str, tuple[str, Callable[[Path], object]]] = {
    "TorchScript file": ("w.pt", script),
    "ONNX file": ("w.onnx", lambda path: path.write_bytes(b"\x08\x09\x12\x07pytorch")),
    r"torch\.export\.save": ("w.pt2", exported),
    "NumPy arrays": ("w.npz", lambda path: np.savez(path, a=np.ones(3))),
    "TensorFlow Lite": ("w.tflite", lambda path: path.write_bytes(b"\x1c\0\0\0TFL3")),
    "HDF5": ("w.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n")),
    "Git LFS": ("w.pt", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
    "a web page": ("w.pt", lambda path: path.write_text("<!DOCTYPE html><html>404</html>")),
    "is a folder": ("w", lambda path: path.mkdir()),
    "not a readable weights file": ("w.pt", lambda path: path.write_bytes(b"\x80\x02")),
    "is empty": ("w.pt", lambda path: path.write_bytes(b"")),
    "is text": ("w.pt", lambda path: path.write_text("epoch 3\n")),
    "is a compressed or tar archive": ("w.pt.gz", lambda path: path.write_bytes(b"\x1f\x8b\x08")),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", OTHER)
def test_what_is_no_file_of_weights_is_told_for_what_it_is(what: str, tmp_path: Path) -> None:
    name, write = OTHER[what]
    write(tmp_path / name)
    with pytest.raises(RequestError, match=what):
        load_weights(network(), tmp_path / name)


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"container\.Sequential\), and code in a checkpoint is never executed"):
        load_weights(network(), tmp_path / "w.pt")


def test_a_file_is_read_for_what_it_holds_whatever_it_is_called(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "w.pt")
    torch.save(network().state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert load_weights(network(), tmp_path / name) == "weights read as they stand"


def test_sparse_tensors_are_taken_dense(tmp_path: Path) -> None:
    state = network().state_dict()
    name = next(key for key, tensor in state.items() if tensor.dim() == 2)
    torch.save(state | {name: state[name].to_sparse()}, tmp_path / "w.pt")
    other = network()
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.state_dict()[name], state[name])


def test_tensors_that_no_training_left_are_refused_by_name(tmp_path: Path) -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3))
    torch.save(norm.state_dict() | {"0.running_var": torch.tensor([1.0, -1.0, -2.0])}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"0\.running_var holds 2 of 3 variances below 0"):
        load_weights(norm, tmp_path / "w.pt")
    torch.save({name: tensor.to("meta") for name, tensor in norm.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"0\.weight has a shape and no values"):
        load_weights(norm, tmp_path / "w.pt")
