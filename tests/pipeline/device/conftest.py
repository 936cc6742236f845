"""A run's folder with two ONNX files of a linear classifier of the digits, the bundle of it, and devices to measure it on."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from edgewise import calib_data, targets
from edgewise import device as device_package
from edgewise.calib_data import Data
from edgewise.device import adb, archive, bundle
from edgewise.device.adb import Adb
from edgewise.device.bundle import Bundle
from edgewise.images.feed import feed_images
from edgewise.images.preprocess import Fed, Preprocess, is_channels_last
from edgewise.images.wrapper import Wrapper
from edgewise.measure.values import Accuracy, Difference
from edgewise.report.document import Report
from edgewise.report.rows import ArtifactFile, Row
from edgewise.store.entries import file_digest
from edgewise.store.json_values import encode
from edgewise.studies.arm64 import native as arm64
from edgewise.verify import card, golden
from edgewise.verify.card import Card

_spec = importlib.util.spec_from_file_location("edgewise_stand_in", Path(__file__).with_name("android.py"))
assert _spec is not None and _spec.loader is not None
android: Any = importlib.util.module_from_spec(_spec)
sys.modules["edgewise_stand_in"] = android
_spec.loader.exec_module(android)

DATA = calib_data.load("digits")


def classifier() -> np.ndarray[Any, Any]:
    """[64, 10], fitted by ridge regression: right on about nine digits of ten."""
    pixels = DATA.train.batch(torch.arange(len(DATA.train))).float().flatten(1).numpy() / 255
    wanted = np.eye(10, dtype=np.float32)[DATA.train.labels.numpy()]
    found: np.ndarray[Any, Any] = np.linalg.solve(pixels.T @ pixels + np.eye(64, dtype=np.float32), pixels.T @ wanted)
    return found.astype(np.float32)


def write_onnx(
    path: Path, *weights: np.ndarray[Any, Any], shape: tuple[int, ...] = (1, 8, 8), takes_bytes: bool = False
) -> None:
    """Flattened images times one matrix after the other; by hand, since exporting takes many times longer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT)] if takes_bytes else []
    nodes.append(helper.make_node("Flatten", ["cast" if takes_bytes else "images"], ["0"]))
    nodes += [helper.make_node("MatMul", [str(i), f"w{i}"], [str(i + 1)]) for i in range(len(weights))]
    held = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    kind = TensorProto.UINT8 if takes_bytes else TensorProto.FLOAT
    given = helper.make_tensor_value_info("images", kind, [1, *shape])
    told = helper.make_tensor_value_info(str(len(weights)), TensorProto.FLOAT, [1, weights[-1].shape[1]])
    model = helper.make_model(
        helper.make_graph(nodes, "net", [given], [told], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)


def write_file(
    run: Path, name: str, precision: str, *weights: np.ndarray[Any, Any], data: Data = DATA, **fields: Any
) -> ArtifactFile:
    """One file with its card and golden images; ``fields``: of the card, where they differ."""
    path = run / "artifacts/onnx" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_onnx(path, *weights, shape=data.shape)
    return write_card(run, path, "onnx", precision, data, **fields)


def write_pte(run: Path, name: str, weights: np.ndarray[Any, Any]) -> ArtifactFile:
    """The same classifier for ExecuTorch, with its card and golden images."""
    from torch import nn

    linear = nn.Linear(64, 10, bias=False)
    linear.weight.data = torch.from_numpy(weights.T.copy())
    program = torch.export.export(nn.Sequential(nn.Flatten(), linear).eval(), (torch.zeros(1, 1, 8, 8),))
    place = run / "artifacts/xnnpack" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    targets.get("xnnpack").export(program, place, targets.USUAL)
    return write_card(run, place, "xnnpack", "float32")


def write_card(
    run: Path, path: Path, target_name: str, precision: str, data: Data = DATA, **fields: Any
) -> ArtifactFile:
    """The card and golden images of a written file."""
    target = targets.get(target_name)
    chosen = golden.choose(data.test)
    assert target.load is not None
    spec = SimpleNamespace(mean=fields.get("mean", (0.0,)), std=fields.get("std", (1.0,)))
    answers = target.load(path, 1)(feed_images(chosen.images, spec, fields.get("fed", "normalised")))
    kept_golden = golden.Golden(chosen.images, chosen.index, answers)
    record = None
    if golden.can_compare(answers, answers):
        record = golden.write(path, kept_golden, golden.tolerance(answers, answers), golden.runtime_of(target))
    versus = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    row = Row(
        step="artifact", target=target_name, params=640, macs=640, bytes=path.stat().st_size,
        accuracy=Accuracy(top1=0.9, n=540, ci95=(0.8, 1.0), vs_baseline=versus),
        latency=None, verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0, precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    kept = Card(**{
        "target": target_name, "sha256": file_digest(path), "recipe": "r", "model": "m", "data_digest": data.digest, "seed": 0,
        "input_shape": data.shape, "mean": (0.0,), "std": (1.0,), "classes": data.classes, "max_drop": 0.07, "row": row,
        "golden": record, **fields,
    })  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    place = path.relative_to(run).as_posix()
    return ArtifactFile(target=target_name, path=place, sha256=kept.sha256, bytes=path.stat().st_size)


@pytest.fixture(scope="session")
def own_file() -> Callable[..., ArtifactFile]:
    """Writes a file for data of a test's own, with its card, as ``write_file``."""
    return write_file


def write_run(run: Path) -> Path:
    """The folder, as a run leaves it."""
    weights = classifier()
    wide = np.eye(64, 2048, dtype=np.float32)
    files = [
        write_file(run, "wide.onnx", "float32", wide, wide.T.copy(), weights),
        write_file(run, "narrow.onnx", "int8", weights),
    ]
    report = Report(recipe={"name": "tiny", "data": "digits", "seed": 0}, environment={}, artifacts=files)
    report.write(run)
    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def bundled(run_folder: Path) -> Bundle:
    """The bundle of it, with 60 images."""
    return bundle.write(run_folder, images=60)


@pytest.fixture(scope="session")
def sent(bundled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A result as this machine's bundle writes it, with no package there but NumPy and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("device")
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        (folder / name).symlink_to(installed / name)
    # Without the site packages, so that nothing else that is installed can be found.
    command = [sys.executable, "-S", str(bundled.path), "--brief", "0.3", "--out", "result.json"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "result.json").read_bytes()


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of its own, so that nobody's is disturbed."""
    if shutil.which("adb") is None:
        pytest.skip("needs the adb client: sudo apt-get install adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = dict(os.environ)
    os.environ.update(ANDROID_ADB_SERVER_PORT=str(port), HOME=str(tmp_path_factory.mktemp("home")))
    subprocess.run(["adb", "start-server"], check=True, capture_output=True)
    yield
    subprocess.run(["adb", "kill-server"], check=True, capture_output=True)
    os.environ.clear()
    os.environ.update(before)


def _adb(*words: str) -> str:
    return subprocess.run(["adb", *words], check=False, capture_output=True, text=True).stdout


@pytest.fixture
def phone(adb_server: None) -> Iterator[Any]:
    found = android.Device()
    yield found
    found.close()
    # The server keeps a device that has gone for a moment, and would list it to the next test.
    until = time.monotonic() + 60
    while found.serial in _adb("devices") and time.monotonic() < until:
        _adb("disconnect", found.serial)
        time.sleep(0.05)


@pytest.fixture
def phone_link(phone: Any, tmp_path: Path) -> Adb:
    return adb.parse(f"adb://{phone.serial}", str(tmp_path))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for this machine: the installed wheels' libraries where they lie, and ours."""
    compiler, torch, executorch = shutil.which("g++"), _place("torch"), _place("executorch")
    if compiler is None or torch is None or executorch is None or sys.platform != "linux":
        pytest.skip("needs Linux, ExecuTorch and a compiler: sudo apt-get install g++")
    folder = tmp_path_factory.mktemp("native")
    source = Path(device_package.__file__).parent / "native/pte.cpp"
    include = executorch / "include"
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-Wall", "-Werror")
    where = (f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10")
    own = folder / "libedgewise_pte.so"
    subprocess.run([compiler, *flags, *where, source, "-o", own], check=True, capture_output=True)
    names = [torch / "lib" / f"lib{name}.so" for name in ("c10", "torch_cpu", "torch", "torch_python")]
    names += [next((executorch / "extension/pybindings").glob("_portable_lib*.so"))]
    (folder / "libraries").write_text("\n".join([*map(str, names), own.name, ""]))
    (folder / "version").write_text("1.4.1\n")
    return folder


def _place(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


@pytest.fixture(scope="session")
def native_program(libraries: Path) -> Path:
    """The program that needs no Python, for this machine."""
    torch_place, executorch = _place("torch"), _place("executorch")
    assert torch_place is not None and executorch is not None
    runtime = next((executorch / "extension/pybindings").glob("_portable_lib*.so"))
    return arm64.compile_program(
        libraries, runtime, "1.4.1", ("g++", "nm"), (libraries, runtime.parent, torch_place / "lib")
    )


@pytest.fixture(scope="session")
def pte_bundled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an ExecuTorch file beside an ONNX one, and 60 images."""
    pytest.importorskip("executorch")
    run = tmp_path_factory.mktemp("pte")
    files = [write_pte(run, "narrow.pte", classifier()), write_file(run, "narrow.onnx", "float32", classifier())]
    Report(recipe={"name": "pte", "data": "digits", "seed": 0}, environment={}, artifacts=files).write(run)
    return bundle.write(run, images=60)


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
FEDS: tuple[Fed, ...] = ("normalised", "channels-last", "bytes")


@pytest.fixture(scope="session")
def fed_bundled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Files for images of three colours, one of each way to be fed, for ONNX Runtime and, where it is there, ExecuTorch."""
    from PIL import Image

    folder, draw = tmp_path_factory.mktemp("fed"), np.random.default_rng(0)
    for part, name, index in itertools.product(("train", "val"), "ab", range(10)):
        place = folder / "images" / part / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6, 10, 3)).astype(np.uint8)).save(place / f"{index}.png")
    data = calib_data.load(calib_data.with_options(f"imagefolder:{folder / 'images'}", {"size": 8})[0], 0)
    files, weights = [], draw.normal(size=(3, 8, 8, 2)).astype(np.float32)
    for fed in FEDS:
        files.append(_write_fed_onnx(folder / "run", fed, weights, data))
        if importlib.util.find_spec("executorch") is not None:
            files.append(_write_fed_pte(folder / "run", fed, weights, data))
    Report(recipe={"name": "fed", "data": data.name, "seed": 0}, environment={}, artifacts=files).write(folder / "run")
    return bundle.write(folder / "run")


def _write_fed_onnx(run: Path, fed: Fed, weights: np.ndarray[Any, Any], data: Data) -> ArtifactFile:
    """One matrix for images that lie as ``fed`` says; weights [channels, height, width, classes]."""
    path = run / "artifacts/onnx" / f"{fed}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    laid = weights.transpose(1, 2, 0, 3) if is_channels_last(fed) else weights
    write_onnx(path, laid.reshape(-1, weights.shape[-1]).copy(), shape=laid.shape[:3], takes_bytes=fed == "bytes")
    return write_card(run, path, "onnx", "float32", data, fed=fed, mean=MEAN, std=STD)


def _write_fed_pte(run: Path, fed: Fed, weights: np.ndarray[Any, Any], data: Data) -> ArtifactFile:
    linear = torch.nn.Linear(weights[..., 0].size, weights.shape[-1], bias=False)
    linear.weight.data = torch.from_numpy(weights.reshape(-1, weights.shape[-1]).T.copy())
    around = Wrapper(preprocess=Preprocess(fed=fed), mean=MEAN, std=STD)
    network = around.around(torch.nn.Sequential(torch.nn.Flatten(), linear).eval())
    path = run / "artifacts/xnnpack" / f"{fed}.pte"
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(network, (around.example(data.shape),))
    targets.get("xnnpack").export(program, path, targets.USUAL)
    return write_card(run, path, "xnnpack", "float32", data, fed=fed, mean=MEAN, std=STD)


@pytest.fixture
def altered(bundled: Bundle, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Writes the bundle anew, its second file one for ExecuTorch (which it is not), with a manifest that a test changes."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        with zipfile.ZipFile(bundled.path) as held:
            kept = {name: held.read(name) for name in held.namelist() if "runner" not in name and name != "__main__.py"}
        document = json.loads(kept.pop("manifest.json"))
        document["files"][1]["target"] = "xnnpack"
        document["wanted"]["executorch"] = "1.4.1"
        document["entries"] = archive.digests(kept)
        change(document)
        place = tmp_path / "altered.pyz"
        place.write_bytes(archive.pack({**kept, "manifest.json": json.dumps(document).encode()}))
        return place

    return write
