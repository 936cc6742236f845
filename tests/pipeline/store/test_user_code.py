"""The user's own code: importable with its folder, and in the digest with every file of his that it imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgewise.errors import RequestError
from edgewise.store.sources import source_digest
from edgewise.store.user_code import import_file, imported_files, is_the_users


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    return folder / "net.py"


def test_what_lies_beside_is_importable_and_the_path_is_left_as_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    net = write(tmp_path, net="import beside_a\nvalue = beside_a.value", beside_a="value = 3")
    assert import_file(net).value == 3
    assert sys.path == before


def test_namesakes_in_two_folders_do_not_answer_for_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        net = write(tmp_path / str(number), net="import namesake\nvalue = namesake.value", namesake=f"value = {number}")
        assert import_file(net).value == number


@pytest.mark.parametrize(
    "line",
    [
        "import blocks",
        "from blocks import conv",
        "def build():\n    from blocks import conv",
        "if True:\n    import blocks as b",
        "import importlib\nb = importlib.import_module('blocks')",
        "from other import x",
    ],
)
def test_a_change_of_an_imported_file_changes_the_digest(line: str, tmp_path: Path) -> None:
    net = write(tmp_path, net=line, blocks="conv = 3", other="from blocks import conv as x")
    before = source_digest(net)
    assert source_digest(net) == before
    write(tmp_path, blocks="conv = 5")
    assert source_digest(net) != before


@pytest.mark.parametrize("marked", [True, False])
def test_packages_and_relative_imports_are_followed(marked: bool, tmp_path: Path) -> None:
    net, pack = write(tmp_path, net="from pack.part import x"), tmp_path / "pack"
    write(pack, part="from .deep import x\nfrom . import side", deep="x = 1", side="y = 2")
    changing = ["deep", "side"]
    if marked:
        (pack / "__init__.py").write_text("")
        changing.append("__init__")
    found = source_digest(net)
    for name in changing:
        (pack / f"{name}.py").write_text("x = y = 9")
        assert source_digest(net) != found
        found = source_digest(net)


def test_an_installed_folder_elsewhere_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "elsewhere", developed="x = 1")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    net = write(tmp_path, net="import developed")
    assert imported_files(net) == [tmp_path / "elsewhere" / "developed.py"]


def test_libraries_and_the_standard_library_do_not_count(tmp_path: Path) -> None:
    net = write(tmp_path, net="import json, torch, numpy\nfrom torch import nn\nimport missing_altogether")
    assert imported_files(net) == []
    assert not is_the_users(Path(pytest.__file__)) and is_the_users(net)


def test_a_missing_module_is_told_with_where_it_may_lie(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"No module named 'nowhere_at_all'. Install it, or put it beside net\.py"):
        import_file(write(tmp_path, net="import nowhere_at_all"))
