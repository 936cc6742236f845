"""Layers timed one by one in the declared runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise import targets
from edgewise.calib_data import Data
from edgewise.models import Spec
from edgewise.models._layers import SeparableConv
from edgewise.stage import Context
from edgewise.stages.separate import Separate, timing
from edgewise.stages.separate.timing import Times, layer_times


class Images:
    """Random bytes."""

    labels = torch.zeros(8, dtype=torch.int64)

    def __len__(self) -> int:
        return 8

    def batch(self, index: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=draw)[index]


def context(folder: Path, notes: list[str]) -> Context:
    part = Images()
    data = Data(name="noise", train=part, calib=part, test=part, classes=("a",), shape=(3, 16, 16), digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 16, 16), mean=(0.5,), std=(0.25,), classifier="")
    return Context(spec=spec, data=data, scratch=folder, note=notes.append)


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1), nn.Flatten()
    )


def test_large_layer_gets_faster_and_equal_ones_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    timed = []
    plainly = timing._time_pair

    def counted(dense: nn.Module, new: nn.Module, shape: tuple[int, ...], ctx: Context) -> Times:
        timed.append(shape)
        return plainly(dense, new, shape, ctx)

    monkeypatch.setattr(timing, "_time_pair", counted)
    pairs = nn.Sequential(nn.Identity(), *(SeparableConv(96, 96, (3, 3), padding=(1, 1)) for _ in range(2)))
    times = layer_times(dense(), pairs, {"1": (1, 96, 16, 16), "2": (1, 96, 16, 16)}, context(tmp_path, []))
    assert times["1"] == times["2"] and timed == [(1, 96, 16, 16)]
    assert 0 < times["1"].new_ms < times["1"].dense_ms and times["1"].ratio_ci95[1] < 1  # 8.2 times fewer MACs
    assert not list(tmp_path.iterdir())


def test_a_layer_that_would_not_be_faster_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    ratios = {"0": 1.5, "1": 0.5, "2": 1.0}
    times = {n: Times(dense_ms=1.0, new_ms=r, ratio_ci95=(r - 0.01, r + 0.01)) for n, r in ratios.items()}
    monkeypatch.setattr("edgewise.stages.separate.layer_times", lambda *_: times)
    stage = Separate(max_error=10, images=8, positions=256, sweeps=0)
    found = stage(dense().eval(), context(tmp_path, notes))
    assert [type(layer) for layer in found] == [nn.Conv2d, SeparableConv, nn.Conv2d, nn.Flatten]
    assert "1.000 to 1.500 ms" in notes[0] and "slower: 1.49 to 1.51" in notes[0]
    assert "not shown to be faster" in notes[2]


def test_without_a_runtime_nothing_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    notes: list[str] = []
    absent = replace(targets.get("onnx"), load=None)
    monkeypatch.setattr("edgewise.targets.get", lambda name: absent)
    assert layer_times(dense(), dense(), {"1": (1, 96, 16, 16)}, context(tmp_path, notes)) == {}
    assert notes == ["onnx does not run on this host: layers are not timed"]
