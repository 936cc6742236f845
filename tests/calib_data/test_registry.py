"""Every reader is tested by existing; the registry itself."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise import calib_data
from edgewise.calib_data import DataError

ROOT = Path(calib_data.__file__).parents[1]


def test_names_are_the_readers_of_the_folder() -> None:
    assert set(calib_data.names()) >= {"arrays", "cifar10", "digits", "idx", "imagefolder"}


@pytest.mark.parametrize("name", calib_data.names())
def test_reader_keeps_the_contract(name: str) -> None:
    reader = importlib.import_module(f"calib_data.{name}")
    assert calib_data.names()[name].endswith(".")
    assert list(inspect.signature(reader.read).parameters) == ["path", "seed"]
    assert reader.read.__doc__


@pytest.mark.parametrize("name", sorted(set(calib_data.names()) - {"digits"}))
def test_reader_without_a_path_says_what_to_write(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} wants a (folder|file).*write {name}:"):
        calib_data.load(name)


@pytest.mark.parametrize("name", sorted(set(calib_data.names()) - {"digits"}))
def test_missing_place_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz: .*wanted|nowhere\.npz: .*wants.*found nothing"):
        calib_data.load(f"{name}:{tmp_path / 'nowhere.npz'}")


def test_unknown_reader_gets_the_nearest_spelling() -> None:
    with pytest.raises(DataError, match=r"'cifar_10'.*Did you mean 'cifar10'.*Choices: arrays, cifar10"):
        calib_data.load("cifar_10:somewhere")


def test_a_folder_where_a_file_is_wanted_and_the_reverse(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("x")
    with pytest.raises(DataError, match="found a folder"):
        calib_data.load(f"arrays:{tmp_path}")
    with pytest.raises(DataError, match="found a file"):
        calib_data.load(f"idx:{text}")
    with pytest.raises(DataError, match=r"wants a \.npz file, found \.txt"):
        calib_data.load(f"arrays:{text}")


def test_listing_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, calib_data; calib_data.names(); print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
