"""Faults planted in written files: each is caught by re-checking, also when the card was made to name the damaged file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise import calib_data, targets
from edgewise.files import parts
from edgewise.images.normalise import normalise
from edgewise.measure.answers import compute_logits
from edgewise.network.captured import Prepare, convert
from edgewise.report.rows import Row
from edgewise.stages.quantize import freeze_ranges
from edgewise.store.json_values import encode
from edgewise.targets import USUAL, Grid
from edgewise.verify import card, golden, manifest
from edgewise.verify.card import Card
from edgewise.verify.recheck import recheck_file

DATA = calib_data.load("digits")
SHAPE = (1, 8, 8)
BACKENDS = {"onnx": "onnxruntime", "xnnpack": "executorch", "coreml": "coremltools"}


@dataclass(frozen=True)
class Spec:
    """What images are normalised with."""

    mean: tuple[float, ...] = (0.3,)
    std: tuple[float, ...] = (0.4,)


@dataclass(frozen=True)
class Written:
    """A file with its card, and the constants of its first convolution as they lie in it."""

    path: Path
    weight: np.ndarray
    """int8 [channels, 9]; a format lays channels first, or last as for a depthwise convolution, which this is too."""
    scale: np.ndarray
    wider: Path
    """The same network with twice the channels."""


def quantized(channels: int) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    ).eval()
    prepared = Prepare(Grid(weight_bits=7).to_json(), SHAPE).capture(net)
    with torch.no_grad():
        prepared(normalise(DATA.calib.batch(torch.arange(64)), Spec()))
    freeze_ranges(prepared)
    return convert(prepared)


def write(name: str, graph: torch.fx.GraphModule, path: Path) -> Path:
    program = torch.export.export(graph, (torch.zeros(1, *SHAPE),))
    return targets.get(name).export(program, path, USUAL).path


def keep(path: Path, name: str) -> None:
    """The card and golden images that a run writes."""
    target = targets.get(name)
    runner = target.load(path, 1) if target.load else target.reference(path) if target.reference else None
    assert runner is not None
    images = golden.choose(DATA.test)
    answers = compute_logits(runner, images, Spec())
    record = golden.write(path, dataclasses.replace(images, answers=answers), golden.tolerance(answers, answers))
    row = Row(
        step="artifact", target=name, params=1, macs=1, bytes=parts.size(path), accuracy=None, latency=None,
        verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0,
    )  # fmt: skip
    kept = Card(
        target=name, sha256=parts.digest(path), recipe="r", model="m", data_digest=DATA.digest, seed=0,
        input_shape=SHAPE, mean=Spec.mean, std=Spec.std, classes=DATA.classes, max_drop=0.02, row=row, golden=record,
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    manifest.write(path, "")


def constants(graph: torch.fx.GraphModule) -> tuple[Tensor, Tensor]:
    node = next(n for n in graph.graph.nodes if "dequantize_per_channel" in str(n.target))
    weight, scale = (getattr(graph, str(argument.target)) for argument in node.args[:2])
    return weight, scale


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Written]:
    name = request.param
    pytest.importorskip(BACKENDS[name])
    folder = tmp_path_factory.mktemp(name)
    graph, suffix = quantized(8), targets.get(name).suffix
    path = write(name, graph, folder / f"net{suffix}")
    keep(path, name)
    weight, scale = constants(graph)
    assert weight.shape == (8, 1, 3, 3)
    wider = write(name, quantized(16), folder / f"wide{suffix}")
    return name, Written(path, weight.numpy().reshape(8, 9), scale.numpy(), wider)


@pytest.fixture
def copy(made: tuple[str, Written], tmp_path: Path) -> tuple[str, Written]:
    name, written = made
    for source in written.path.parent.iterdir():
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, tmp_path / source.name)
    return name, dataclasses.replace(written, path=tmp_path / written.path.name)


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]


def replace(path: Path, old: bytes, new: bytes) -> None:
    """Write ``new`` wherever ``old`` lies in the file; once at least, or the fault is none."""
    assert len(old) == len(new) and old != new
    found = 0
    for file in files(path):
        content = file.read_bytes()
        found += content.count(old)
        file.write_bytes(content.replace(old, new))
    assert found, "the constant was not found"


def wrong_scale(written: Written) -> None:
    """The scales of the first weight, a quarter larger: in float32, or in float16 where the format keeps them so."""
    single, half = written.scale.astype("<f4"), written.scale.astype("<f2")
    kept = single if any(single.tobytes() in file.read_bytes() for file in files(written.path)) else half
    replace(written.path, kept.tobytes(), (kept * 1.25).astype(kept.dtype).tobytes())


def swapped_channels(written: Written) -> None:
    """The first two channels of the first weight, each in the other's place."""
    other = written.weight[[1, 0, *range(2, len(written.weight))]]
    pairs = [(written.weight, other), (written.weight.T, other.T)]
    old, new = next((o, n) for o, n in pairs if any(o.tobytes() in file.read_bytes() for file in files(written.path)))
    replace(written.path, old.tobytes(), new.tobytes())


def unpruned(written: Written) -> None:
    """A network with more channels than the card's."""
    if written.path.is_dir():
        shutil.rmtree(written.path)
        shutil.copytree(written.wider, written.path)
    else:
        shutil.copy2(written.wider, written.path)


def wrong_preprocessing(written: Written) -> None:
    """A card that says another mean than the network was trained with."""
    place = card.path_of(written.path)
    kept = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps(kept | {"mean": [0.5]}), encoding="utf-8")


def truncated(written: Written) -> None:
    largest = max(files(written.path), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) * 9 // 10])


FAULTS: tuple[Callable[[Written], None], ...] = (
    wrong_scale,
    swapped_channels,
    unpruned,
    wrong_preprocessing,
    truncated,
)


def test_the_file_as_it_was_written_passes_without_a_data_set(copy: tuple[str, Written]) -> None:
    found = recheck_file(copy[1].path)
    assert (found.verdict, found.accuracy) == ("pass", None)
    assert "its answers to 16 golden images are those it gave when it was made" in found.reason


@pytest.mark.parametrize("renewed", [False, True], ids=["old card", "card made to fit"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_caught(copy: tuple[str, Written], fault: Callable[[Written], None], renewed: bool) -> None:
    name, written = copy
    fault(written)
    place = card.path_of(written.path)
    if renewed:
        kept = json.loads(place.read_text(encoding="utf-8"))
        kept |= {"sha256": parts.digest(written.path), "row": kept["row"] | {"bytes": parts.size(written.path)}}
        place.write_text(json.dumps(kept), encoding="utf-8")
        manifest.write(written.path, "")
    found = recheck_file(written.path)
    assert found.verdict == "fail", f"{name}: {found.reason}"
    assert ("not the file that was verified" in found.reason) == (not renewed)
    if renewed and fault is truncated:
        assert any(
            words in found.reason for words in ("export it again", "truncated", "wanted a Core ML specification")
        )
    elif renewed:
        assert "golden images moved by up to" in found.reason


@pytest.mark.parametrize("renewed", [False, True], ids=["old manifest", "manifest made to fit"])
def test_golden_images_that_were_changed_or_deleted_fail(copy: tuple[str, Written], renewed: bool) -> None:
    path = copy[1].path
    place = golden.path_of(path)
    place.write_bytes(place.read_bytes() + b" ")
    if renewed:
        manifest.write(path, "")
    found = recheck_file(path)
    assert found.verdict == "fail" and place.name in found.reason
    place.unlink()
    if renewed:
        manifest.write(path, "")
    found = recheck_file(path)
    assert found.verdict == "fail" and "is missing" in found.reason
