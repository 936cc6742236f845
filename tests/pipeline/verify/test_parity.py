"""Files held against their networks layer by layer: whole ones agree, a planted fault is named where it was planted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise import calib_data, library_noise, models, targets
from edgewise.__main__ import main
from edgewise.errors import RequestError
from edgewise.files import lower
from edgewise.images.normalise import normalise
from edgewise.measure.values import Accuracy, Difference
from edgewise.network import architecture, captured, checkpoint
from edgewise.network.architecture import Base
from edgewise.network.captured import Prepare
from edgewise.network.checkpoint import Checkpoint
from edgewise.report.rows import Row
from edgewise.stage import Context
from edgewise.stages import quantize as stages_quantize
from edgewise.stages.fold import Fold
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.targets import Grid
from edgewise.verify import card, layerwise, manifest
from edgewise.verify import parity as layers
from edgewise.verify.card import Card

ROOT = Path(__file__).parents[3]
DATA = calib_data.load("digits")
SPEC = models.get("tiny_resnet")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoint of a calibrated network, as Files.deliver_checkpoint leaves it."""
    out = tmp_path_factory.mktemp("run")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SPEC.build().eval()
    images = normalise(DATA.calib.batch(torch.arange(128)), SPEC)
    folded = Fold()(network, Context(spec=SPEC, data=DATA, scratch=out))
    prepared = Prepare(Grid(weight_bits=7).to_json(), SHAPE).capture(folded)
    with torch.no_grad():
        prepared(images)
    for module in prepared.modules():
        if hasattr(module, "disable_observer"):
            module.disable_observer()
    place = out / "checkpoints" / "net"
    checkpoint.save(Checkpoint(Base("tiny_resnet", 10, 1), prepared), place)
    (place / "input.json").write_text(json.dumps({"shape": SHAPE}), encoding="utf-8")
    return out


def written(folder: Path, name: str) -> Path:
    target = targets.get(name)
    path = folder / "artifacts" / name / f"net{target.suffix}"
    if not path.exists():
        target.export(lower.capture_program(folder / "checkpoints" / "net"), path, targets.USUAL)
    versus = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    accuracy = Accuracy(top1=0.0, n=540, ci95=(0.0, 1.0), vs_baseline=versus)
    row = Row(
        step="artifact", target=name, params=1, macs=1, bytes=None, accuracy=accuracy, latency=None, verification="runtime",
        undelegated=(), verdict="pass", reason="", seconds=0.0, precision="int8",
    )  # fmt: skip
    kept = Card(
        target=name, sha256=file_digest(path), recipe="r", model="tiny_resnet", data_digest=DATA.digest, seed=0,
        input_shape=SHAPE, mean=SPEC.mean, std=SPEC.std, classes=DATA.classes, max_drop=0.02, row=row, checkpoint="net",
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    manifest.write(path, "net")
    return path


TARGETS = [pytest.param("onnx"), pytest.param("coreml"), pytest.param("xnnpack")]


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_file_agrees_layer_by_layer(folder: Path, name: str) -> None:
    try:
        path = written(folder, name)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    found = layers.inspect(path, "digits")
    assert found.first is None, found.sentence
    names = {layer.name for layer in found.layers}
    assert {"stem.0", "stages.0.conv2.0", "stages.1", "stages.1.shortcut.0", "pool"} <= names
    known = [layer.quantization_db for layer in found.layers[:6] if layer.quantization_db is not None]
    assert any(value > 10 for value in known) and not any(value <= 10 for value in known)


SWITCHED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, num_classes)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.stem(x.float()).relu()
        with torch.no_grad():
            x = self.body(x)
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.parametrize("name", ["onnx", "xnnpack"])
def test_layers_where_gradients_or_precision_are_switched_are_compared(tmp_path: Path, name: str) -> None:
    (tmp_path / "net.py").write_text(SWITCHED)
    base = Base(f"{tmp_path}/net.py:Net", 10, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = architecture.build(base).eval()
    place = tmp_path / "checkpoints" / "net"
    checkpoint.save(Checkpoint(base, network), place)
    (place / "input.json").write_text(json.dumps({"shape": SHAPE}), encoding="utf-8")
    try:
        path = written(tmp_path, name)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    found = layers.inspect(path, "digits", model=base.model)
    assert found.first is None and {"stem", "body", "head"} <= {layer.name for layer in found.layers}


def test_a_wrong_weight_scale_in_an_onnx_file_is_named(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = written(folder, "onnx")
    model = onnx.load(path)
    convolutions = {node.output[0]: node for node in model.graph.node if node.op_type == "Conv"}
    readers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    scale = readers[convolutions["conv2d_4"].input[1]].input[1]
    scaled(onnx, model, scale, 1.1)
    assert fault(folder, path, lambda place: onnx.save(model, place)) == "stages.1.conv2.0"


def test_a_wrong_activation_scale_in_an_onnx_file_is_named(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = written(folder, "onnx")
    model = onnx.load(path)
    (quantize,) = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "conv2d_7"]
    copied = onnx.TensorProto()
    copied.CopyFrom(next(i for i in model.graph.initializer if i.name == quantize.input[1]))
    copied.name = "planted"
    model.graph.initializer.append(copied)
    quantize.input[1] = "planted"
    scaled(onnx, model, "planted", 1.2)
    assert fault(folder, path, lambda place: onnx.save(model, place)) == "stages.2.conv2.0"


def scaled(onnx: Any, model: Any, name: str, factor: float) -> None:
    (tensor,) = [i for i in model.graph.initializer if i.name == name]
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array((array * factor).astype(array.dtype), name))


def fault(folder: Path, whole: Path, write: Callable[[Path], Any]) -> str:
    """The layer that is named for a changed copy of the file ``whole``."""
    path = whole.with_name(f"planted{whole.suffix}")
    write(path)
    card.path_of(path).write_bytes(card.path_of(whole).read_bytes())
    found = layers.inspect(path, "digits")
    assert found.first is not None
    assert found.to_json()["verdict"] == "fail" and found.first.name in found.sentence
    return found.first.name


@pytest.mark.slow
def test_a_wrong_activation_scale_in_a_pte_file_is_named(folder: Path) -> None:
    """XNNPACK keeps one scale for writing and reading a tensor: too small a one saturates."""

    def plant(file: Any, graph: Any) -> None:
        convolutions = [n["xnode_union"] for n in graph.document["xnodes"] if "Conv2d" in n["xnode_union_type"]]
        graph._value(convolutions[4]["output_id"])["quant_params"]["scale"] *= 0.3

    assert pte_fault(folder, plant) == "stages.1.conv2.0"


def test_a_wrong_weight_scale_in_a_pte_file_is_named(folder: Path) -> None:
    def plant(file: Any, graph: Any) -> None:
        convolutions = [n["xnode_union"] for n in graph.document["xnodes"] if "Conv2d" in n["xnode_union_type"]]
        place = graph._value(convolutions[4]["filter_id"])["quant_params"]["scale_buffer_idx"]
        key = graph.document["constant_data"][place]["named_key"]
        index = file.named_data.pte_data[key].buffer_index
        scales = torch.frombuffer(bytearray(file.named_data.buffers[index]), dtype=torch.float32) * 1.1
        file.named_data.buffers[index] = scales.numpy().tobytes()

    assert pte_fault(folder, plant) == "stages.1.conv2.0"


def pte_fault(folder: Path, plant: Callable[[Any, Any], None]) -> str:
    """The layer that is named once ``plant`` has changed the program and its XNNPACK graph."""
    pytest.importorskip("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    from edgewise.targets.xnnpack._inside import _Graph

    path = written(folder, "xnnpack")
    file = deserialize_pte_binary(path.read_bytes())
    plan = file.program.execution_plan[0]
    data = file.program.backend_delegate_data[plan.delegates[0].processed.index]
    graph = _Graph.read(bytes(data.data))
    plant(file, graph)
    data.data = graph.written()
    content = bytes(serialize_pte_binary(file, extract_delegate_segments=True))
    return fault(folder, path, lambda place: place.write_bytes(content))


def test_a_wrong_scale_in_a_core_ml_package_is_named(folder: Path) -> None:
    pytest.importorskip("coremltools")
    import shutil

    import numpy as np
    from coremltools.proto import Model_pb2

    path = written(folder, "coreml")
    (place,) = path.rglob("model.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(place.read_bytes())
    function = model.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    constants = {o.outputs[0].name: o for o in operations if o.type == "const"}
    (convolution,) = [o for o in operations if o.outputs[0].name == "conv2d_7_cast_fp16"]
    (reader,) = [o for o in operations if o.outputs[0].name == convolution.inputs["x"].arguments[0].name]
    assert reader.type == "dequantize"
    scale = constants[reader.inputs["scale"].arguments[0].name].attributes["val"].immediateValue.tensor
    scale.bytes.values = (np.frombuffer(scale.bytes.values, np.float16) * np.float16(1.25)).tobytes()

    def write(target: Path) -> None:
        shutil.copytree(path, target, dirs_exist_ok=True)
        (target / place.relative_to(path)).write_bytes(model.SerializeToString())

    assert fault(folder, path, write) == "stages.2.conv1.0"


def test_the_command_names_the_layer_and_fails(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = written(folder, "onnx")
    good = command("verify", str(path), "--data", "digits", "--layers", "--json")
    assert (good.returncode, json.loads(good.stdout)["layers"]["verdict"]) == (0, "pass"), good.stderr
    model = onnx.load(path)
    (convolution,) = [node for node in model.graph.node if node.output[0] == "conv2d_1"]
    (reader,) = [node for node in model.graph.node if node.output[0] == convolution.input[1]]
    scaled(onnx, model, reader.input[1], 1.1)
    bad = path.with_name("bad.onnx")
    onnx.save(model, bad)
    kept = json.loads(card.path_of(path).read_text(encoding="utf-8"))
    card.path_of(bad).write_text(json.dumps(kept | {"sha256": file_digest(bad)}), encoding="utf-8")
    manifest.write(bad, "net")
    shown = command("verify", str(bad), "--data", "digits", "--layers")
    assert shown.returncode == 1
    assert "first divergent layer: stages.0.conv1.0" in shown.stdout
    assert "Warning" not in shown.stderr + good.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [((), "name one with --data"), (("--data", "digits", "--input-size", "16", "16"), "leave --input-size out")],
)
def test_layers_are_compared_on_images_of_the_captured_size(
    more: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "net.onnx", "--layers", *more]) == 2
    assert told in capsys.readouterr().err


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_card_cannot_point_out_of_its_folder(folder: Path) -> None:
    pytest.importorskip("onnx")
    path = written(folder, "onnx")
    document = json.loads(card.path_of(path).read_text(encoding="utf-8"))
    for name, message in (
        ("../checkpoints/net", "outside"),
        ("..", "outside"),
        ("", "no checkpoint"),
        ("x", "no checkp"),
    ):
        card.path_of(path).write_text(json.dumps(document | {"checkpoint": name}), encoding="utf-8")
        with pytest.raises(RequestError, match=message):
            layers.inspect(path, "digits")


def test_code_that_a_checkpoint_names_is_not_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    base = {"model": f"{tmp_path}/net.py:net", "num_classes": 2, "in_channels": 1}
    (tmp_path / "model.json").write_text(json.dumps({"base": base, "surgery": []}), encoding="utf-8")
    with pytest.raises(RequestError, match="if you trust it"):
        checkpoint.allow_model(tmp_path, None)
    with pytest.raises(RequestError, match="holds no checkpoint"):
        checkpoint.allow_model(tmp_path / "none", None)
    checkpoint.allow_model(tmp_path, base["model"])


def test_a_value_of_the_file_stands_at_every_node_that_reads_it() -> None:
    """A gate reads a convolution's integers twice; with one of them recomputed, a rounded tie counts as a fault of the sigmoid."""

    class Gated(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x) * x

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), Gated()).eval()
    prepared = Prepare(Grid(weight_bits=7).to_json(), (1, 4, 4)).capture(network)
    images = torch.linspace(-4, 4, 16).reshape(1, 1, 4, 4)
    with torch.no_grad():
        prepared(images)
    stages_quantize.freeze_ranges(prepared)
    with library_noise.quiet_capture():
        program = torch.export.export(captured.convert(prepared), (images,))
    graph = layerwise.module_of(program)
    values = layerwise.values_of(graph, images)
    conv = next(node for node in graph.graph.nodes if "conv2d" in node.name)
    second = next(node for node in graph.graph.nodes if "sigmoid" in node.name).args[0]
    first = next(node for node in next(iter(conv.users)).users if node is not second)
    shifted = values[first.name] + float(first.args[1])  # one step of its grid, everywhere
    assert layerwise._at_every_reader(graph, {first.name: shifted})[second.name] is shifted
    rest = layerwise._Recompute(graph, {first.name: shifted, second.name: shifted}).of(images, 0)
    known = {first.name, *(name for name in values if "dequantize_per_tensor" in name and name != second.name)}
    inside = targets.Inside(program=program, values={n: shifted if n == first.name else rest[n].float() for n in known})
    found = layerwise.compare(inside, images, "int8", {})
    assert {layer.operation: layer.worst for layer in found}["sigmoid"] == 0


class Tokens(torch.nn.Module):
    """Its values' first dimension counts patches, not images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(4, 2, 2).relu()
        return (tokens + 1).reshape(1, 16)


def test_values_are_told_apart_by_image_whatever_their_first_dimension_counts() -> None:
    program = torch.export.export(Tokens(), (torch.zeros(1, 1, 4, 4),))
    images = torch.arange(32.0).reshape(2, 1, 4, 4) - 8
    graph = layerwise.module_of(program)
    relu, add = (node.name for node in graph.graph.nodes if node.name in ("relu", "add"))
    values = {relu: images.reshape(8, 2, 2).relu(), add: images.reshape(8, 2, 2).relu() + 1}
    found = layerwise.compare(targets.Inside(program=program, values=values), images, "float32", {})
    assert [(layer.node, layer.worst) for layer in found] == [(relu, 0.0), (add, 0.0)]
    values[relu] = values[relu].roll(4, 0)  # the images' values exchanged
    swapped = {
        layer.node: layer.diverges
        for layer in layerwise.compare(targets.Inside(program=program, values=values), images, "float32", {})
    }
    assert swapped == {relu: True, add: True}


def test_only_what_a_file_lets_out_is_kept_of_a_recomputation() -> None:
    """All values of a network for images of 224 x 224 pixels, twice for each image, are gigabytes."""
    program = torch.export.export(Tokens(), (torch.zeros(1, 1, 4, 4),))
    graph = layerwise.module_of(program)
    relu = next(node.name for node in graph.graph.nodes if node.name == "relu")
    assert set(layerwise._Recompute(graph, {}, kept={relu}).of(torch.ones(1, 1, 4, 4), 0)) == {relu}
    assert len(layerwise._Recompute(graph, {}).of(torch.ones(1, 1, 4, 4), 0)) > 2


def test_a_float_value_is_dropped_where_a_target_numbered_its_kind_anew() -> None:
    """A convolution put in front takes the name of the one behind it, whose values are not its own."""
    first, second = torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 2, 1)
    x = torch.zeros(1, 2, 4, 4)
    before = torch.export.export(torch.nn.Sequential(second, torch.nn.ReLU()), (x,))
    after = torch.export.export(torch.nn.Sequential(first, second, torch.nn.ReLU()), (x,))
    values = {"conv2d": torch.ones(1), "relu": torch.zeros(1)}
    assert set(layers.values_still_named(values, before, after)) == {"relu"}
    assert set(layers.values_still_named(values, after, after)) == {"conv2d", "relu"}
