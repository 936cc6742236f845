"""One channel's scale doubled in SqueezeNet's XNNPACK file: what each check of the command line says of it, and what it cannot say.

SqueezeNet 1.1 at its full width, trained and calibrated on the digits by ``run`` itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise import calib_data
from edgewise.__main__ import main
from edgewise.files import parts
from edgewise.files.isolated import open_isolated
from edgewise.measure.answers import compute_logits
from edgewise.store.json_values import encode
from edgewise.verify import card, golden, manifest

pytest.importorskip("executorch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

SIDE = 32
# A ReLU stands behind its classifier: a class whose logit starts at 0 or below never learns.
NET = """
from edgewise import models

mean, std, input_shape = (0.5,), (0.5,), (1, 32, 32)


def squeezenet(num_classes=10, in_channels=1):
    network = models.get("squeezenet1_1").build(num_classes, in_channels)
    network.classifier[1].bias.data.fill_(1.0)
    return network
"""
RECIPE = """
from edgewise import Augment, Limits, Quantize, Recipe, Train, Training


def scales():
    training = Training(epochs=25, lr=0.001, optimizer="adamw", batch_size=64, warmup=1, augment=Augment(flip=False))
    return Recipe(
        name="scales", model=r"{folder}/net.py:squeezenet", data=r"arrays:{folder}/data.npz",
        baseline=Train(training=training), quantize=Quantize(training=None, sensitivity=0), targets=("xnnpack",),
        limits=Limits(max_drop=0.02, max_latency_ratio=1e6, same_work_ratio=1e6, max_step_ratio=1e6),
    )
"""
# The network's convolutions in the file's order: the first, and a squeezing one of the fifth fire module.
PLACES = {"features.0": 0, "features.9.squeeze": 13}


@dataclasses.dataclass(frozen=True)
class Written:
    """What one run left."""

    folder: Path
    report: Any

    @property
    def file(self) -> Path:
        (path,) = (self.folder / "out" / "artifacts" / "xnnpack").glob("*.pte")
        return path

    @property
    def data(self) -> str:
        return f"arrays:{self.folder / 'data.npz'}"

    def copied(self, name: str) -> Written:
        """The same in a folder of its own, to be changed."""
        shutil.copytree(self.folder / "out", self.folder / name / "out")
        return dataclasses.replace(self, folder=self.folder / name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("squeezenet")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)), encoding="utf-8")
    digits = calib_data.load("digits")
    arrays = {}
    for name, part in (("train", digits.train), ("test", digits.test)):
        images = part.batch(torch.arange(len(part))).float()
        larger = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear")
        arrays |= {f"x_{name}": larger[:, 0].round().byte().numpy(), f"y_{name}": part.labels.numpy()}
    np.savez(folder / "data.npz", **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_STORE", str(folder / "store"))
        assert main(["run", f"{folder / 'recipe.py'}:scales", "--out", str(folder / "out")]) == 0
    return Written(folder, json.loads((folder / "out" / "report.json").read_text(encoding="utf-8")))


def double_scale(path: Path, convolution: int) -> None:
    """The largest scale of one convolution's output channels, twice as large; nothing beside the file is touched."""
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    from edgewise.targets.xnnpack._inside import _Graph

    file = deserialize_pte_binary(path.read_bytes())
    delegate = file.program.execution_plan[0].delegates[0]
    graph = _Graph.read(bytes(file.program.backend_delegate_data[delegate.processed.index].data))
    nodes = [node["xnode_union"] for node in graph.document["xnodes"] if "Conv2d" in node["xnode_union_type"]]
    place = graph._value(nodes[convolution]["filter_id"])["quant_params"]["scale_buffer_idx"]
    index = file.named_data.pte_data[graph.document["constant_data"][place]["named_key"]].buffer_index
    scales = np.frombuffer(file.named_data.buffers[index], np.float32).copy()
    scales[scales.argmax()] *= 2
    file.named_data.buffers[index] = scales.tobytes()
    path.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))


def seal(path: Path, **changed: Any) -> None:
    """A card and a list of digests that call the file, as it is, the one that was verified."""
    own_card = dataclasses.replace(card.read(path), sha256=parts.digest(path), **changed)
    card.path_of(path).write_text(json.dumps(encode(own_card)), encoding="utf-8")
    manifest.write(path, own_card.checkpoint)


def seal_with_answers(path: Path, data_name: str) -> None:
    """As ``seal``, and every answer and figure on the card is what the file, as it is, gives: a faulty exporter's own evidence."""
    own_card = card.read(path)
    data = card.load_images(own_card, data_name)
    with open_isolated(own_card.target, path) as runner:
        answers = compute_logits(runner, data.test, own_card)
    assert own_card.golden is not None and own_card.row.accuracy is not None
    before = golden.read(path, own_card.golden)
    anew = dataclasses.replace(before, answers=answers[before.index])
    record = golden.write(path, anew, own_card.golden.tolerance, own_card.golden.runtime)
    top1 = float((answers.argmax(1) == data.test.labels).double().mean())
    row = dataclasses.replace(own_card.row, accuracy=dataclasses.replace(own_card.row.accuracy, top1=top1))
    seal(path, golden=record, row=row, answers=tuple(map(tuple, answers[: len(own_card.answers)].tolist())))


@pytest.fixture
def verified(written: Written, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit status and words of ``verify``."""

    def verify(path: Path, *more: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main(["verify", str(path), *more])
        return status, " ".join("".join(capfd.readouterr()).split())

    return verify


def test_the_whole_file_passes_its_run_and_its_layers(written: Written, verified: Any) -> None:
    (row,) = [row for row in written.report["rows"] if row["step"] == "artifact"]
    assert row["accuracy"]["top1"] > 0.75, "too little is learned for answers to tell anything"
    assert (row["verdict"], row["gates"]["agreement"]) == ("pass", "pass")
    status, said = verified(
        written.file, "--data", written.data, "--layers", "--model", f"{written.folder}/net.py:squeezenet"
    )
    assert status == 0, said


@pytest.mark.parametrize("layer", PLACES)
def test_a_doubled_scale_is_caught_by_digest_by_answers_and_by_layers(
    written: Written, verified: Any, layer: str
) -> None:
    place = written.copied(layer)
    path, data, model = place.file, written.data, ("--model", f"{written.folder}/net.py:squeezenet")
    double_scale(path, PLACES[layer])
    status, said = verified(path)
    assert (status, "not the file that was verified" in said) == (1, True), said
    seal(path)
    status, said = verified(path)
    assert (status, "golden images moved" in said) == (1, True), said
    seal_with_answers(path, data)
    # Nothing is left that was computed with the right scale but the network beside the file.
    status, said = verified(path, "--data", data)
    assert status == 0, said
    status, said = verified(path, "--data", data, "--layers", *model)
    assert (status, f"first divergent layer: {layer} " in said) == (1, True), said
