"""What a result's key covers of the code: every file that the result depends on, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgewise.measure import latency
from edgewise.stages.prune import latency_table, sensitivity
from edgewise.stages.train import Train
from edgewise.store import sources
from edgewise.store.sources import code_of, source_digest


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Import name -> folder of a copy of the project, which the digests follow instead of the project."""
    folders = {name: tmp_path / folder.name for name, folder in sources._FOLDERS.items()}
    for name, folder in folders.items():
        shutil.copytree(sources._FOLDERS[name], folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "_FOLDERS", folders)
    return folders


def change(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")


@pytest.mark.parametrize("used", ["stages/training/loop.py", "images/normalise.py", "network/tensors.py", "stage.py"])
def test_a_file_that_training_uses_changes_its_key(copy: dict[str, Path], used: str) -> None:
    train = copy["edgewise"] / "stages" / "train.py"
    before = source_digest(train)
    change(copy["edgewise"] / used)
    assert source_digest(train) != before


@pytest.mark.parametrize(
    "unused",
    [
        "recipe.py",
        "network/float16_constants.py",
        "network/surgery.py",
        "network/fold_norms.py",
        "store/entries.py",
        "stages/quantize/__init__.py",
        "images/sizes.py",
        "verify/gates.py",
    ],
)
def test_a_file_that_training_does_not_use_leaves_its_key(copy: dict[str, Path], unused: str) -> None:
    train = copy["edgewise"] / "stages" / "train.py"
    before = source_digest(train)
    change(copy["edgewise"] / unused)
    assert source_digest(train) == before


def test_training_depends_on_few_files() -> None:
    seen: set[Path] = set()
    waiting = [sources._FOLDERS["edgewise"] / "stages" / "train.py"]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += sources._imported_files(path.read_text(encoding="utf-8"), path)
    assert len(seen) <= 20


def test_a_scan_and_a_table_are_kept_under_all_that_they_use(copy: dict[str, Path]) -> None:
    """A scan cuts networks, a table times files: what does that is no part of their own file."""
    prune = copy["edgewise"] / "stages" / "prune"
    scan, table = (source_digest(prune / name) for name in ("sensitivity.py", "latency_table.py"))
    change(prune / "coupling.py")
    assert source_digest(prune / "sensitivity.py") != scan
    change(copy["edgewise"] / "files" / "in_runtime.py")
    assert source_digest(prune / "latency_table.py") != table


def test_code_is_named_by_modules_classes_and_functions() -> None:
    files = [latency.__file__, latency_table.__file__, sensitivity.__file__]
    expected = [source_digest(Path(str(file))) for file in files]
    assert code_of(latency, latency_table.Kind, sensitivity.scan_groups) == expected
    assert code_of(Train) != code_of(latency)


def test_the_digest_follows_the_projects_imports(copy: dict[str, Path], tmp_path: Path) -> None:
    layers, deep = copy["edgewise.models"] / "layers_of_mine.py", copy["edgewise.models"] / "deep_of_mine.py"
    layers.write_text("from edgewise.models import deep_of_mine\n")
    deep.write_text("a = 1\n")
    mine = tmp_path / "mine.py"
    mine.write_text("def f():\n    from edgewise.models.layers_of_mine import a\n")
    first = source_digest(mine)
    deep.write_text("a = 2\n")
    second = source_digest(mine)
    layers.write_text("import edgewise.models.deep_of_mine\n")
    assert len({first, second, source_digest(mine)}) == 3


def test_of_a_package_only_the_module_that_is_taken_counts(copy: dict[str, Path], tmp_path: Path) -> None:
    package = copy["edgewise"] / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("value = 1\n")
    (package / "part.py").write_text("value = 2\n")
    (package / "near.py").write_text("from . import part\nfrom .part import value\n")
    whole, part = tmp_path / "whole.py", tmp_path / "part.py"
    whole.write_text("from edgewise.mine import value\n")
    part.write_text("from edgewise.mine import near\n")
    before = source_digest(whole), source_digest(part)
    change(package / "__init__.py")
    assert source_digest(whole) != before[0] and source_digest(part) == before[1]
    change(package / "part.py")
    assert source_digest(part) != before[1]


def test_the_face_of_the_project_is_in_no_key(copy: dict[str, Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from edgewise import Prune\n")
    before = source_digest(mine)
    change(copy["edgewise"] / "__init__.py")
    assert source_digest(mine) == before
