"""Written files, and the evidence for them, changed, cut, exchanged and deleted: nothing crashes, and nothing passes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgewise import calib_data, targets
from edgewise.errors import EvidenceError
from edgewise.files import parts
from edgewise.measure.answers import compute_logits
from edgewise.network import checkpoint
from edgewise.network.architecture import Base
from edgewise.network.checkpoint import Checkpoint
from edgewise.report.rows import Row
from edgewise.store.json_values import encode
from edgewise.targets import USUAL
from edgewise.verify import card, golden, manifest, recheck, signature
from edgewise.verify.card import Card

DATA = calib_data.load("digits")
SHAPE = (1, 8, 8)
BACKENDS = {"coreml": "coremltools", "onnx": "onnxruntime", "xnnpack": "executorch"}
REGIONS = 16
"""Equal parts of a file, in each of which bits are flipped."""

NET = '''
from torch import nn


def small(num_classes=10, in_channels=1):
    """Two layers."""
    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, num_classes))
'''


@dataclasses.dataclass(frozen=True)
class Spec:
    mean: tuple[float, ...] = (0.3,)
    std: tuple[float, ...] = (0.4,)


def deliver(name: str, folder: Path) -> Path:
    """A run's folder with one target's file and all that a run puts beside it."""
    (folder / "net.py").write_text(NET, encoding="utf-8")
    base = Base(f"{folder / 'net.py'}:small", 10, 1)
    torch.manual_seed(0)
    net = checkpoint.architecture.build(base).eval()
    place = folder / "checkpoints" / "net-1"
    checkpoint.save(Checkpoint(base, net), place)
    (place / "input.json").write_text(json.dumps({"shape": list(SHAPE)}), encoding="utf-8")
    target = targets.get(name)
    artifacts = folder / "artifacts" / name
    artifacts.mkdir(parents=True)
    program = torch.export.export(net, (torch.zeros(1, *SHAPE),))
    path = target.export(program, artifacts / f"net{target.suffix}", USUAL).path
    images = golden.choose(DATA.test)
    answers = compute_logits(net, images, Spec())
    record = golden.write(path, dataclasses.replace(images, answers=answers), golden.tolerance(answers, answers))
    row = Row(
        step="artifact", target=name, params=1, macs=1, bytes=parts.size(path), accuracy=None, latency=None,
        verification="runtime", undelegated=(), verdict="pass", reason="", seconds=0.0,
    )  # fmt: skip
    # Another processor's tolerance: the answers are PyTorch's, not the file's own.
    loose = dataclasses.replace(record, cpu="another", tolerance=golden.Tolerance(worst=0.02, mean=0.02))
    kept = Card(
        target=name, sha256=parts.digest(path), recipe="r", model="m", data_digest=DATA.digest, seed=0,
        input_shape=SHAPE, mean=Spec.mean, std=Spec.std, classes=DATA.classes, max_drop=0.02, row=row, golden=loose,
        checkpoint="net-1",
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    path.with_name(path.name + manifest.USAGE).write_text(f"# {path.name}\n" * 9, encoding="utf-8")
    manifest.write(path, "net-1")
    return path


def keys(folder: Path) -> tuple[Path, Path]:
    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = folder / "key.pem", folder / "key.pub"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A target's name and its file, signed."""
    pytest.importorskip(BACKENDS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    path = deliver(request.param, folder)
    signature.sign(path, keys(folder)[0])
    return request.param, path


@pytest.fixture
def copy(made: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
    name, path = made
    run = path.parents[2]
    shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
    return name, tmp_path / "run" / path.relative_to(run)


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is opened: what was changed must be found before."""

    @contextlib.contextmanager
    def refuse(target: str, path: Path) -> Iterator[Any]:
        raise AssertionError("a file that was changed was opened")
        yield

    monkeypatch.setattr(recheck, "open_isolated", refuse)


def everything(path: Path) -> list[Path]:
    """Every file that counts: the artifact's, the evidence's, the network's, and the manifest."""
    network = path.parents[2] / "checkpoints" / "net-1"
    return [*manifest.files_of(path), manifest.path_of(path), *sorted(network.iterdir())]


def kind_of(name: str, path: Path, file: Path) -> str:
    if file.parent.name == "net-1":
        return f"network's {file.name}"
    named = {
        card.path_of(path): "card", golden.path_of(path): "golden images", manifest.path_of(path): "manifest",
        path.with_name(path.name + manifest.USAGE): "how it is used",
    }  # fmt: skip
    return named.get(file, f"{name} file")


def flips(size: int, draw: random.Random, each: int) -> Iterator[tuple[int, int]]:
    """Offset and bit, ``each`` in every region of a file."""
    for region in range(min(REGIONS, size)):
        low, high = region * size // min(REGIONS, size), (region + 1) * size // min(REGIONS, size)
        for _ in range(each):
            yield draw.randrange(low, high), draw.randrange(8)


def test_a_flipped_bit_is_found_before_anything_is_opened(
    copy: tuple[str, Path], shut: None, many: bool, tally: Any
) -> None:
    name, path = copy
    draw = random.Random(1)
    for file in everything(path):
        content = file.read_bytes()
        for offset, bit in flips(len(content), draw, 8 if many else 1):
            changed = bytearray(content)
            changed[offset] ^= 1 << bit
            file.write_bytes(changed)
            found = recheck.recheck_file(path)
            assert found.verdict == "fail", (file, offset, bit)
            tally(f"one bit flipped: {kind_of(name, path, file)}")
        file.write_bytes(content)
    assert manifest.problems(path, manifest.read(path)) == []


def deleted(file: Path, draw: random.Random) -> None:
    file.unlink()


def emptied(file: Path, draw: random.Random) -> None:
    file.write_bytes(b"")


def cut(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])


def lengthened(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes() + draw.randbytes(9))


def made_a_pipe(file: Path, draw: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def made_a_device(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def made_a_folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def made_a_loop(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    deleted, emptied, cut, lengthened, made_a_pipe, made_a_device, made_a_folder, made_a_loop,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_before_anything_is_opened(
    copy: tuple[str, Path], shut: None, damage: Callable[[Path, random.Random], None], tally: Any
) -> None:
    _, path = copy
    draw, whole = random.Random(2), path.parents[2].with_name("whole")
    shutil.copytree(path.parents[2], whole)
    for file in everything(path):
        if not path.is_dir() and file == path and damage in (deleted, made_a_pipe, made_a_device, made_a_loop):
            continue  # there is no file then, and the request names none
        damage(file, draw)
        assert recheck.recheck_file(path).verdict == "fail", (file, damage)
        tally(f"{damage.__name__.replace('_', ' ')}: any file")
        shutil.rmtree(path.parents[2])
        shutil.copytree(whole, path.parents[2])


def test_files_of_two_runs_cannot_be_mixed(copy: tuple[str, Path], shut: None, tmp_path: Path, tally: Any) -> None:
    name, path = copy
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    deliver(name, elsewhere)
    for file in everything(path):
        theirs = elsewhere / file.relative_to(path.parents[2])
        ours = file.read_bytes()
        if theirs.read_bytes() == ours:
            theirs.write_bytes(ours + b" ")
        file.write_bytes(theirs.read_bytes())
        assert recheck.recheck_file(path).verdict == "fail", file
        tally("exchanged for another run's file")
        file.write_bytes(ours)


def renew(path: Path) -> None:
    """What somebody does who can write there and has no key: the card and the manifest are made to fit."""
    with contextlib.suppress(ValueError, OSError):
        kept = json.loads(card.path_of(path).read_text(encoding="utf-8"))
        kept |= {"sha256": parts.digest(path), "row": kept["row"] | {"bytes": parts.size(path)}}
        card.path_of(path).write_text(json.dumps(kept), encoding="utf-8")
    manifest.write(path, "net-1")


def test_without_the_key_nothing_holds_however_well_it_was_made_to_fit(
    copy: tuple[str, Path], made: tuple[str, Path], many: bool, tally: Any
) -> None:
    name, path = copy
    public, draw = made[1].parents[2] / "key.pub", random.Random(3)
    signature.verify(path, public)
    for file in [*manifest.files_of(path), signature.path_of(path)]:
        content, before = file.read_bytes(), manifest.path_of(path).read_bytes()
        for offset, bit in flips(len(content), draw, 2 if many else 1):
            changed = bytearray(content)
            changed[offset] ^= 1 << bit
            file.write_bytes(changed)
            if file == card.path_of(path):
                manifest.write(path, "net-1")
            elif file != signature.path_of(path):
                renew(path)
            with pytest.raises(EvidenceError):
                signature.verify(path, public)
                raise AssertionError(f"{file} {offset} {bit}")
            tally(f"made to fit, with a key: {'signature' if file == signature.path_of(path) else name}")
        file.write_bytes(content)
        card.path_of(path).write_bytes(card.path_of(made[1]).read_bytes())
        manifest.path_of(path).write_bytes(before)


def test_what_was_made_to_fit_is_opened_elsewhere_and_its_death_is_a_finding(
    copy: tuple[str, Path], many: bool, tally: Any
) -> None:
    """Without a key only the golden images are left, which notice what changes the answers."""
    name, path = copy
    draw = random.Random(4)
    file = max(parts_files(path), key=lambda each: each.stat().st_size)
    content, kept = file.read_bytes(), card.path_of(path).read_bytes()
    for offset, bit in draw.sample(list(flips(len(content), draw, 4)), 12 if many else 2):
        changed = bytearray(content)
        changed[offset] ^= 1 << bit
        file.write_bytes(changed)
        renew(path)
        found = recheck.recheck_file(path)
        tally(f"made to fit, without a key: {name}", "caught" if found.verdict == "fail" else "harmless")
        assert found.verdict in ("fail", "pass") and "Traceback" not in found.reason
        file.write_bytes(content)
        card.path_of(path).write_bytes(kept)


def parts_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
