"""The list of digests beside a file: complete, readable by sha256sum, and pointing nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgewise.errors import EvidenceError, RequestError
from edgewise.verify import manifest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A run's folder with a file whose weights lie beside it, and its network."""
    folder = tmp_path / "artifacts" / "fake"
    folder.mkdir(parents=True)
    path = folder / "net.fake"
    for name in ("", ".data", manifest.CARD, manifest.GOLDEN, manifest.USAGE):
        path.with_name(path.name + name).write_bytes(name.encode())
    network = tmp_path / "checkpoints" / "net-1"
    network.mkdir(parents=True)
    (network / "model.json").write_text("{}", encoding="utf-8")
    (network / "model.safetensors").write_bytes(b"t")
    manifest.write(path, "net-1")
    return path


def found(file: Path, checkpoint: Path | None = None) -> list[str]:
    return [str(problem).split(":")[0] for problem in manifest.problems(file, manifest.read(file), checkpoint)]


def test_it_names_everything_and_sha256sum_reads_it(file: Path) -> None:
    assert set(manifest.read(file)) == {
        "net.fake", "net.fake.data", "net.fake.card.json", "net.fake.golden.safetensors", "net.fake.md",
        "../../checkpoints/net-1/model.json", "../../checkpoints/net-1/model.safetensors",
    }  # fmt: skip
    assert found(file) == []
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", manifest.path_of(file).name], cwd=file.parent, capture_output=True)
        assert done.returncode == 0 and done.stdout.count(b": OK") == 7


@pytest.mark.parametrize(
    "name", ["net.fake", "net.fake.data", "net.fake.card.json", "net.fake.golden.safetensors", "net.fake.md"]
)
def test_each_file_is_missed_and_its_change_is_seen(file: Path, name: str) -> None:
    place = file.with_name(name)
    before = place.read_bytes()
    place.write_bytes(b"x")
    assert found(file) == [f"{name} was changed"]
    place.unlink()
    assert found(file) == [f"{name} is missing"]
    os.mkfifo(place)
    assert found(file) == [f"{name} is no regular file"]
    place.unlink()
    place.write_bytes(before)
    assert found(file) == []


def test_a_network_is_compared_where_it_lies(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "checkpoints" / "net-1" / "model.safetensors"
    weights.write_bytes(b"T")
    assert found(file) == ["../../checkpoints/net-1/model.safetensors was changed"]
    weights.unlink()
    assert found(file) == ["../../checkpoints/net-1/model.safetensors is missing"]
    away = tmp_path / "away"
    shutil.copytree(file.parent, away)
    moved = away / file.name
    assert manifest.is_moved(moved) and found(moved) == []
    assert found(moved, tmp_path / "checkpoints" / "net-1") == ["../../checkpoints/net-1/model.safetensors is missing"]


def test_files_that_came_later_are_seen(file: Path) -> None:
    manifest.write(file, "")
    without = file.with_name("net.fake.data")
    text = manifest.path_of(file).read_text(encoding="utf-8")
    manifest.path_of(file).write_text(
        "".join(line for line in text.splitlines(keepends=True) if without.name not in line), encoding="utf-8"
    )
    assert found(file) == ["net.fake.data was not there when the file was verified"]


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        f"{DIGEST}  /etc/passwd", f"{DIGEST}  ../net.fake", f"{DIGEST}  ../../../x", f"{DIGEST}  a/../../b",
        f"{DIGEST}  ../../checkpoints/../../x", f"{DIGEST} net.fake", "x", f"{DIGEST[1:]}  net.fake", "\x00", "",
    ],
)  # fmt: skip
def test_what_points_elsewhere_or_is_no_manifest_is_refused(file: Path, line: str) -> None:
    place = manifest.path_of(file)
    place.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(EvidenceError, match=place.name):
        manifest.read(file)


def test_a_manifest_must_name_the_file_and_its_card(file: Path) -> None:
    place = manifest.path_of(file)
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    for name in ("net.fake", "net.fake.card.json"):
        place.write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")), encoding="utf-8")
        with pytest.raises(EvidenceError, match=f"names no {name}"):
            manifest.read(file)


@pytest.mark.parametrize("kind", ["none", "folder", "fifo", "bytes", "large"])
def test_what_is_no_text_is_refused(file: Path, kind: str) -> None:
    place = manifest.path_of(file)
    place.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind != "none":
        place.write_bytes(b"\xff" * (2_000_000 if kind == "large" else 9))
    with pytest.raises(EvidenceError, match=place.name):
        manifest.read(file)


def test_a_folder_that_no_run_wrote_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package.fake").mkdir()
    for place in (Path("/"), Path(), Path(".."), tmp_path, tmp_path / "package.fake", Path("/dev/null")):
        with pytest.raises(RequestError, match=r"no regular file|no run wrote it"):
            manifest.refuse_other(place)
    (tmp_path / f"package.fake{manifest.CARD}").touch()
    manifest.refuse_other(tmp_path / "package.fake")


@pytest.mark.parametrize("change", [("\n", "\x0b"), ("\n", "\r\n"), ("\n", "\x85"), ("\n", "")])
def test_lines_end_as_they_were_written(file: Path, change: tuple[str, str]) -> None:
    place = manifest.path_of(file)
    text = place.read_text(encoding="utf-8")
    place.write_bytes("".join([*text.rpartition("\n")[:1], change[1]]).encode())
    with pytest.raises(EvidenceError):
        manifest.read(file)
    place.write_bytes(text.replace(*change, 1).encode())
    with pytest.raises(EvidenceError):
        manifest.read(file)


def test_a_file_that_is_named_twice_is_refused(file: Path) -> None:
    place = manifest.path_of(file)
    place.write_text(f"{'0' * 64}  net.fake\n" + place.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(EvidenceError, match="twice"):
        manifest.read(file)
