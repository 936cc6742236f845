"""The Core ML package's folder: the same bytes for the same program, and refusal of what is not whole."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from edgewise.targets import TargetError, get
from edgewise.targets.coreml import _package
from edgewise.targets.coreml._mil import Reference, UnknownOperatorError, read_program

TARGET = get("coreml")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")

_NET = """
import sys, pathlib, torch
from torch import nn
from edgewise.targets import get
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
program = torch.export.export(net, (torch.zeros(1, 3, 6, 6),))
get("coreml").export(program, pathlib.Path(sys.argv[1]))
"""


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def whole(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "net.mlpackage"
    return TARGET.export(torch.export.export(net, (torch.zeros(1, 3, 6, 6),)), path).path


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "net.mlpackage"))


def reference(path: Path) -> Reference:
    return Reference(read_program(path))


def test_what_is_in_a_package(whole: Path) -> None:
    assert set(digests(whole)) == {"Manifest.json", str(MODEL), str(WEIGHTS)}


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_and_says_nothing(whole: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mlpackage"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _NET, str(again)], capture_output=True, text=True, env=environment, check=True
    )
    assert digests(again) == digests(whole)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_package_names_no_path_date_or_build(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = (whole / MODEL).read_bytes()
    for word in (
        b"torch==",
        b"conversion_date",
        b"coremltools",
        str(tmp_path_factory.getbasetemp()).encode(),
        b"/home",
    ):
        assert word not in content


def test_a_package_replaces_the_one_before(package: Path) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    (package / "stray").write_text("x")
    TARGET.export(torch.export.export(other, (torch.zeros(1, 3, 2, 2),)), package)
    assert "stray" not in digests(package)
    assert reference(package)(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert [path.name for path in package.parent.iterdir()] == ["net.mlpackage"]


def test_a_failed_inspection_leaves_the_package_before(package: Path) -> None:
    before = digests(package)
    with pytest.raises(RuntimeError), _package.stage_package(package, b"specification", b"weights"):
        raise RuntimeError
    assert digests(package) == before
    assert [path.name for path in package.parent.iterdir()] == ["net.mlpackage"]


@pytest.mark.parametrize("missing", ["Manifest.json", str(MODEL), str(WEIGHTS)])
def test_a_missing_file_is_named(package: Path, missing: str) -> None:
    (package / missing).unlink()
    with pytest.raises(TargetError, match=Path(missing).name):
        reference(package)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_weights_are_refused(package: Path, share: float) -> None:
    content = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TargetError, match=r"weight\.bin"):
        reference(package)


def test_a_truncated_specification_is_refused(package: Path) -> None:
    content = (package / MODEL).read_bytes()
    for share in (0.0, 0.5, 0.97):
        (package / MODEL).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(TargetError):
            reference(package)


def test_weights_of_another_type_are_refused(package: Path) -> None:
    content = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into("<I", content, 64 + 4, 3)  # the first record's element type: uint8 in place of float16
    (package / WEIGHTS).write_bytes(content)
    with pytest.raises(TargetError, match="FLOAT16"):
        reference(package)


@pytest.mark.parametrize("path", ["../../outside", "/etc/hostname", "com.apple.CoreML/../../../outside"])
def test_a_manifest_cannot_reach_outside(package: Path, path: str) -> None:
    shutil.copy(package / MODEL, package.parent / "outside")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TargetError, match="inside the package"):
        reference(package)


def test_a_link_cannot_reach_outside(package: Path) -> None:
    (package / WEIGHTS).rename(package.parent / "weight.bin")
    (package / WEIGHTS).symlink_to(package.parent / "weight.bin")
    with pytest.raises(TargetError, match="inside the package"):
        reference(package)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rootModelIdentifier": "x", "itemInfoEntries": {"x": {"path": 3}}}']
)
def test_a_manifest_of_another_kind_is_refused(package: Path, text: str) -> None:
    (package / "Manifest.json").write_text(text)
    with pytest.raises(TargetError, match=r"Manifest\.json"):
        reference(package)


def edit(package: Path, old: bytes, new: bytes) -> None:
    assert len(old) == len(new), "lengths are part of the format"
    content = (package / MODEL).read_bytes()
    assert old in content
    (package / MODEL).write_bytes(content.replace(old, new))


def test_unknown_operators_are_all_named_at_once(package: Path) -> None:
    edit(package, b"\x04silu", b"\x04sulu")
    edit(package, b"\x06linear", b"\x06lunear")
    with pytest.raises(UnknownOperatorError, match=r"lunear \(1\), sulu \(1\)") as caught:
        reference(package)
    assert caught.value.types == {"lunear": 1, "sulu": 1}


def test_an_unknown_argument_is_refused(package: Path) -> None:
    edit(package, b"\x07strides", b"\x07stridez")
    with pytest.raises(TargetError, match="stridez"):
        reference(package)


def test_images_of_another_size_are_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="at 6×6, found"):
        reference(whole)(torch.zeros(1, 3, 7, 7))


def test_swapped_weights_show_as_disagreement(net: nn.Module, package: Path) -> None:
    images = torch.randn(64, 3, 6, 6)
    wanted = net(images).argmax(1)
    assert bool((reference(package)(images).argmax(1) == wanted).all())
    content = bytearray((package / WEIGHTS).read_bytes())
    size, start = struct.unpack_from("<QQ", content, 64 + 8)
    channels = content[start : start + size]
    content[start : start + size] = channels[size // 2 :] + channels[: size // 2]
    (package / WEIGHTS).write_bytes(content)
    assert not bool((reference(package)(images).argmax(1) == wanted).all())
