"""Bundles: what is in one, that it is the same for the same run, and what is refused."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import calib_data
from edgewise.device import accept, archive, bench, bundle, host_answers, manifest, result
from edgewise.device.bench import Request
from edgewise.device.bundle import Bundle
from edgewise.device.local import Local
from edgewise.device.runner.contents import BundleError, Contents
from edgewise.errors import RequestError
from edgewise.report.document import Report
from edgewise.report.rows import ArtifactFile

RUNNER = Path(bundle.__file__).parent / "runner"


def test_a_bundle_holds_the_files_the_golden_images_and_a_labelled_slice(bundled: Bundle) -> None:
    found = bundled.manifest
    assert [(f.name, f.precision, f.baseline) for f in found.files] == [
        ("wide.onnx", "float32", True),
        ("narrow.onnx", "int8", False),
    ]
    assert (found.slice.count, found.slice.shape, found.wanted.keys()) == (60, (1, 8, 8), {"onnxruntime"})
    labels = host_answers.decode_classes(found.slice.labels)
    answers = host_answers.decode_classes(found.files[0].host_answers)
    assert len(labels) == len(answers) == 60 and (labels == answers).mean() > 0.8
    with zipfile.ZipFile(bundled.path) as held:
        assert set(held.namelist()) == {*found.entries, "manifest.json"}
        assert len(held.read("slice/images.u8")) == 60 * 64


def test_the_same_run_gives_the_same_bytes(bundled: Bundle, run_folder: Path, tmp_path: Path) -> None:
    again = bundle.write(run_folder, images=60, out=tmp_path / "again.pyz")
    assert again.sha256 == bundled.sha256 and again.path.read_bytes() == bundled.path.read_bytes()
    assert os.access(again.path, os.X_OK)


def test_a_bundle_is_read_back_and_its_run_knows_it(bundled: Bundle, run_folder: Path) -> None:
    assert bundle.read(bundled.path) == bundled
    assert manifest.find_kept(run_folder, bundled.sha256) == bundled.manifest
    assert manifest.find_kept(run_folder, "0" * 64) is None


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_flipped_byte_is_refused_here_and_on_the_device(bundled: Bundle, tmp_path: Path, place: float) -> None:
    content = bytearray(bundled.path.read_bytes())
    with zipfile.ZipFile(bundled.path) as held:
        spans = [
            (e.header_offset + 100, e.file_size) for e in held.infolist() if e.filename.startswith(("files", "slice"))
        ]
    start, size = spans[int(place * len(spans))]
    content[start + size // 2] ^= 1
    path = tmp_path / "b.pyz"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="write it again"):
        bundle.read(path)
    done = subprocess.run(
        [sys.executable, path, "--brief", "0.1"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2 and "copy it here again" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.pyz"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="edgewise bundle RUN"):
        bundle.read(path)
    with pytest.raises(RequestError, match="edgewise bundle RUN"):
        bundle.read(tmp_path / "missing.pyz")


def _repacked(bundled: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], None], compression: int = 0) -> Path:
    """The bundle with another manifest, every digest in it right."""
    path = tmp_path / "b.pyz"
    with zipfile.ZipFile(bundled.path) as held, zipfile.ZipFile(path, "w", compression) as new:
        document = json.loads(held.read("manifest.json"))
        change(document)
        for name in held.namelist():
            new.writestr(name, json.dumps(document) if name == "manifest.json" else held.read(name))
        for name in set(document["entries"]) - set(held.namelist()):
            new.writestr(name, b"x")
    return path


def _entry(name: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["files"][0]["entries"].append(name)
        document["entries"][name] = hashlib.sha256(b"x").hexdigest()

    return change


@pytest.mark.parametrize("name", ["/", "../x", "files/../../x", "files/onnx/../../../x", "golden/x", "files//x"])
def test_a_member_that_would_lie_elsewhere_is_refused_here_and_on_the_device(
    bundled: Bundle, tmp_path: Path, name: str
) -> None:
    name = str(tmp_path / "x") if name == "/" else name
    path = _repacked(bundled, tmp_path, _entry(name))
    with pytest.raises(RequestError, match="outside its own folder"):
        bundle.read(path)
    contents = Contents(path)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    if name.startswith(("/", "..", "files/..", "files/onnx/..")):
        with pytest.raises(BundleError, match="outside its own folder"):
            contents.unpack(contents.files[0], tmp_path / "a" / "b" / "c")
    assert list(tmp_path.rglob("x")) == []


def test_compressed_doubled_and_unlisted_members_are_refused(bundled: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="compressed"):
        bundle.read(_repacked(bundled, tmp_path, lambda document: None, zipfile.ZIP_DEFLATED))
    path = _repacked(bundled, tmp_path, lambda document: None)
    bundle.read(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as twice:
        twice.writestr("slice/labels.u16", b"other")
    with pytest.raises(RequestError, match="one name"):
        bundle.read(path)
    path = _repacked(bundled, tmp_path, lambda document: document["entries"].pop(document["files"][0]["path"]))
    with pytest.raises(RequestError, match="no digest"):
        bundle.read(path)
    with pytest.raises(BundleError, match="no digest"):
        Contents(path)


def _changed(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_a_file_that_is_not_its_cards_is_refused(run_folder: Path, tmp_path: Path) -> None:
    run = _changed(run_folder, tmp_path)
    path = run / "artifacts/onnx/wide.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RequestError, match="not the file that was verified"):
        bundle.write(run)


def test_golden_images_of_another_file_are_refused(run_folder: Path, tmp_path: Path) -> None:
    run = _changed(run_folder, tmp_path)
    (run / "artifacts/onnx/wide.onnx.golden.safetensors").write_bytes(b"other")
    with pytest.raises(RequestError, match="golden"):
        bundle.write(run)


def test_other_data_are_refused(run_folder: Path, tmp_path: Path) -> None:
    run = _changed(run_folder, tmp_path)
    place = run / "artifacts/onnx/wide.onnx.card.json"
    place.write_text(place.read_text().replace(json.loads(place.read_text())["data_digest"], "0" * 64))
    with pytest.raises(RequestError, match="verified on other images"):
        bundle.write(run)


def test_a_path_out_of_the_folder_is_refused(run_folder: Path, tmp_path: Path) -> None:
    run = _changed(run_folder, tmp_path)
    place = run / "report.json"
    place.write_text(place.read_text().replace("artifacts/onnx/wide.onnx", "../../etc/passwd"))
    with pytest.raises(RequestError, match="outside the run's folder"):
        bundle.write(run)


@pytest.mark.parametrize(
    ("wanted", "images", "words"),
    [(["xnnpack"], None, "choices: onnx"), ([], 0, "at least 1"), (["onx"], None, "no file for onx")],
)
def test_a_wrong_request_is_refused(run_folder: Path, wanted: list[str], images: int | None, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        bundle.write(run_folder, wanted, images)


def test_a_folder_without_files_for_devices_is_refused(run_folder: Path, tmp_path: Path) -> None:
    run = _changed(run_folder, tmp_path)
    place = run / "report.json"
    place.write_text(place.read_text().replace('"target": "onnx"', '"target": "ethos_u"'))
    with pytest.raises(RequestError, match=r"no file that runs on a device.*found ethos_u"):
        bundle.write(run)


@pytest.mark.parametrize("path", sorted(RUNNER.glob("*.py")), ids=lambda path: path.name)
def test_the_runner_is_python_3_9_and_imports_nothing_of_the_project(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    named = [n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names]
    # By a dot and not by name: in a bundle the package has another.
    named += [str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0]
    roots = {name.split(".")[0] for name in named} - set(sys.stdlib_module_names)
    assert roots <= {"numpy", "onnxruntime", "executorch", "torch", "coremltools", "PIL"}
    if path.name != "runtimes.py":
        assert roots <= {"numpy"}


def test_entries_are_packed_in_one_order_without_times() -> None:
    assert archive.pack({"b": b"1", "a": b"2"}) == archive.pack({"a": b"2", "b": b"1"})


_FORKS = """
import hashlib, itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edgewise_runner.apart import apart
from edgewise_runner.contents import Contents
contents = Contents(Path(sys.argv[1]))
digests = {name: digest for name, digest in contents.manifest["entries"].items() if "/" in name and "runner" not in name}
def right(*names):
    return {"right": all(hashlib.sha256(contents.read(name)).hexdigest() == digests[name] for name in names)}
for pair in itertools.product(digests, digests):
    assert apart(lambda: right(*pair))["right"], pair
"""


def test_what_one_fork_reads_moves_nothing_for_the_next(bundled: Bundle) -> None:
    done = subprocess.run([sys.executable, "-c", _FORKS, bundled.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_folder(folder: Path, names: Sequence[str]) -> None:
    """Images of noise in folders of these names, each class brighter in one place than the others."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, name in enumerate(names):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(12):
                pixels = draw.integers(0, 60, (16, 16, 3))
                pixels[4 * number : 4 * number + 4] += 180
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")


@pytest.mark.parametrize(
    ("names", "images", "order"),
    [
        (("straße, 1", 'a"b', "日本", "it's; {x}"), {"size": 16}, False),
        (("one", "two", "three"), {"size": 8, "resize": 12, "interpolation": "bicubic"}, True),
        (("0", "1"), {}, False),
    ],
)
def test_a_folder_of_images_is_prepared_as_the_files_card_says(
    tmp_path: Path, own_file: Callable[..., ArtifactFile], names: Sequence[str], images: dict[str, Any], order: bool
) -> None:
    write_folder(tmp_path / "images", names)
    name = f"imagefolder:{tmp_path / 'images'}"
    data = calib_data.load(calib_data.with_options(name, images)[0], 0)
    if order:
        data = calib_data.named_as(data, tuple(reversed(data.classes)))
    weights = np.random.default_rng(1).normal(size=(math.prod(data.shape), len(names))).astype(np.float32)
    run = tmp_path / "run"
    file = own_file(run, "net.onnx", "float32", weights, data=data, images=images)
    Report(recipe={"name": "own", "data": name, "seed": 0}, environment={}, artifacts=[file]).write(run)
    found = bundle.write(run)
    assert found.manifest.slice.classes == data.classes and found.manifest.slice.shape == data.shape
    assert found.manifest.slice.count == found.manifest.slice.available == len(data.test)
    rows = bench.measure(
        found, Local(folder=str(tmp_path / "there")), Request(mode=("--brief", "0.1")), lambda text: None, "here", 0.05
    ).rows
    assert rows[0].accuracy and rows[0].accuracy.vs_baseline.delta == 0
    assert rows[0].verdict == "not-checked" and "the test set has no more" in rows[0].reason


def test_files_are_fed_as_their_cards_say(fed_bundled: Bundle, tmp_path: Path) -> None:
    link, request = Local(folder=str(tmp_path / "there")), Request(mode=("--brief", "0.1"))
    rows = bench.measure(fed_bundled, link, request, lambda text: None, "here", 0.05).rows
    assert {row.file.partition(".")[0] for row in rows} == {"normalised", "channels-last", "bytes"}
    for row in rows:
        assert "0 of 16 in another class" in row.golden, (row.file, row.golden)
        assert row.accuracy and row.accuracy.vs_baseline.delta == 0


def test_a_run_that_wrote_nothing_is_told_apart_from_one_for_other_targets(tmp_path: Path) -> None:
    Report(recipe={"name": "own", "data": "digits", "seed": 0}, environment={}, artifacts=[]).write(tmp_path)
    with pytest.raises(RequestError, match=r"found none: the run stopped before it wrote one.*--keep-going"):
        bundle.write(tmp_path)


def test_a_file_whose_answers_are_no_numbers_is_left_out(tmp_path: Path, own_file: Callable[..., ArtifactFile]) -> None:
    whole = own_file(tmp_path, "whole.onnx", "float32", np.eye(64, 10, dtype=np.float32))
    broken = own_file(tmp_path, "broken.onnx", "int8", np.full((64, 10), np.inf, np.float32))
    report = Report(recipe={"name": "own", "data": "digits", "seed": 0}, environment={}, artifacts=[whole, broken])
    report.write(tmp_path)
    said: list[str] = []
    found = bundle.write(tmp_path, images=20, say=said.append)
    assert [file.name for file in found.manifest.files] == ["whole.onnx"]
    assert "files/onnx/broken.onnx" not in found.manifest.entries
    assert any("broken.onnx is left out: its answers to 20 of 20 images" in line for line in said)
    report.artifacts = [broken]
    report.write(tmp_path)
    with pytest.raises(RequestError, match="no file whose answers are finite"):
        bundle.write(tmp_path)


def test_that_a_file_failed_in_its_run_is_told_and_decides_nothing(
    tmp_path: Path, run_folder: Path, sent: bytes
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    place = run / "artifacts/onnx/narrow.onnx.card.json"
    document = json.loads(place.read_text())
    document["row"] |= {"verdict": "fail", "reason": "1.20 of the baseline's time"}
    place.write_text(json.dumps(document))
    said: list[str] = []
    found = bundle.write(run, images=60, say=said.append)
    assert "narrow.onnx failed in its run: 1.20 of the baseline's time" in said
    result_there = json.loads(sent)
    result_there["bundle_sha256"] = found.sha256
    parsed = result.parse(json.dumps(result_there).encode(), "r")
    wide, narrow = accept.accept_result(parsed, found.manifest, found.sha256, "board")
    assert (wide.verdict, narrow.verdict) == ("pass", "pass") and "failed" not in wide.reason
    assert narrow.reason.endswith("the run that wrote it failed it: 1.20 of the baseline's time")
