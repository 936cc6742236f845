"""What an artifact consists of: a file, a folder, or a file and the weights beside it."""

from __future__ import annotations

from pathlib import Path

from edgewise.files import parts
from edgewise.store.entries import file_digest


def test_a_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"12345")
    (tmp_path / "net.onnx.card.json").write_text("{}")
    assert parts.roots(path) == (path,)
    assert (parts.digest(path), parts.size(path)) == (file_digest(path), 5)


def test_weights_beside_a_file_are_of_it(tmp_path: Path) -> None:
    path, data = tmp_path / "net.onnx", tmp_path / "net.onnx.data"
    path.write_bytes(b"12345")
    alone = parts.digest(path)
    data.write_bytes(b"678")
    both = parts.digest(path)
    assert parts.roots(path) == (path, data)
    assert both != alone and parts.size(path) == 8
    data.write_bytes(b"679")
    assert parts.digest(path) != both


def test_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "net.mlpackage"
    (folder / "Data").mkdir(parents=True)
    (folder / "Data" / "weight.bin").write_bytes(b"1234")
    (folder / "Manifest.json").write_bytes(b"12")
    assert parts.size(folder) == 6 and parts.digest(folder) == file_digest(folder)
