"""Checkpoint: a network of any history comes back bit for bit, from tensors and plain data."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import edgewise
from edgewise.errors import StoreError
from edgewise.models._layers import SeparableConv
from edgewise.network import architecture, checkpoint, surgery
from edgewise.network.architecture import Base
from edgewise.network.captured import Prepare
from edgewise.network.checkpoint import Checkpoint
from edgewise.targets import Grid

SOURCE = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
"""
FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from edgewise.network import checkpoint
folder = Path(sys.argv[1])
loaded = checkpoint.load(folder)
known = load_file(folder / "known.safetensors")
with torch.no_grad():
    assert torch.equal(loaded.model(known["images"]), known["outputs"])
print(checkpoint.digest(loaded))
"""
PRUNED = surgery.Resize(
    {"0": {"out_channels": 2}, "2": {"in_channels": 2}},
    {"0.weight": [2, 1, 3, 3], "0.bias": [2], "2.weight": [4, 2, 3, 3]},
)
SEPARATED = surgery.Replace(
    {"2": {"type": "SeparableConv", "args": {"in_channels": 4, "out_channels": 4, "kernel_size": [3, 3]}}}
)


def base(tmp_path: Path) -> Base:
    (tmp_path / "net.py").write_text(SOURCE)
    return Base(f"{tmp_path}/net.py:net", 2, 1)


def made(tmp_path: Path, kind: str) -> Checkpoint:
    chosen = base(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.build(chosen).eval()
        if kind == "pruned":
            model = surgery.apply(model, PRUNED)
            for tensor in model.parameters():
                nn.init.normal_(tensor.data)
        if kind == "separated":
            model = surgery.apply(model, SEPARATED).eval()
    if kind == "quantized":
        model = Prepare(Grid().to_json(), (1, 8, 8)).capture(model)
        with torch.no_grad():
            model(torch.ones(2, 1, 8, 8))
        for quantizer in model.modules():
            if hasattr(quantizer, "disable_observer"):
                quantizer.disable_observer()
    return Checkpoint(chosen, model)


@pytest.mark.parametrize("kind", ["plain", "pruned", "separated", "quantized"])
def test_comes_back_bit_for_bit_here_and_in_a_fresh_process(tmp_path: Path, kind: str) -> None:
    kept, folder = made(tmp_path, kind), tmp_path / "kept"
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = kept.model(images)
    checkpoint.save(kept, folder)
    save_file({"images": images, "outputs": outputs}, folder / "known.safetensors")
    loaded = checkpoint.load(folder)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), outputs)
    digest = checkpoint.digest(kept)
    assert loaded.base == kept.base and checkpoint.digest(loaded) == digest
    root = Path(edgewise.__file__).parent.parent
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == digest


def test_the_changed_structure_is_what_was_loaded(tmp_path: Path) -> None:
    for kind in ("pruned", "separated"):
        checkpoint.save(made(tmp_path, kind), tmp_path / kind)
    assert checkpoint.load(tmp_path / "pruned").model[0].weight.shape == (2, 1, 3, 3)
    assert isinstance(checkpoint.load(tmp_path / "separated").model[2], SeparableConv)


def test_a_quantized_graph_is_captured_again_at_batch_1(tmp_path: Path) -> None:
    kept = made(tmp_path, "quantized")
    checkpoint.save(kept, tmp_path / "kept")
    single = checkpoint.load(tmp_path / "kept", batch=1).model
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(single(image), kept.model(image))


def test_the_digest_changes_with_each_part(tmp_path: Path) -> None:
    plain = made(tmp_path, "plain")
    digests = [checkpoint.digest(plain)]
    assert checkpoint.digest(made(tmp_path, "plain")) == digests[0]
    digests.append(checkpoint.digest(Checkpoint(dataclasses.replace(plain.base, num_classes=3), plain.model)))
    surgery.record(plain.model, surgery.Resize({}, {}))
    digests.append(checkpoint.digest(plain))
    with torch.no_grad():
        plain.model[0].bias[1] += 1
    digests.append(checkpoint.digest(plain))
    (tmp_path / "net.py").write_text(SOURCE + "# changed\n")
    digests.append(checkpoint.digest(plain))
    assert len(set(digests)) == 5


def test_tensors_that_do_not_fit_are_told(tmp_path: Path) -> None:
    checkpoint.save(made(tmp_path, "pruned"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for wrong in (tensors | {"0.bias": torch.zeros(3)}, {k: v for k, v in tensors.items() if k != "0.bias"}):
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(StoreError, match=r"do not fit(.|\n)*0\.bias"):
            checkpoint.load(tmp_path)


def test_unknown_surgery_is_told(tmp_path: Path) -> None:
    checkpoint.save(made(tmp_path, "pruned"), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    description["surgery"][0]["op"] = "execute"
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(StoreError, match="'execute'; known: resize, replace, prepare"):
        checkpoint.load(tmp_path)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made(tmp_path, "pruned")

    def refuse(*args: object, **named: object) -> None:
        raise AssertionError("torch.load or torch.save was called")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    checkpoint.save(kept, tmp_path / "kept")
    checkpoint.load(tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["model.json", "model.safetensors"]
