"""The house's rules on imports: no circle anywhere, and a contract that turns red when it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from edgewise.store import sources

ROOT = Path(__file__).parents[2]


def test_no_circle_of_imports_anywhere() -> None:
    """Imports for types and those inside functions are counted; a circle of any length raises CycleError."""
    files = [path for folder in sources._FOLDERS.values() for path in folder.rglob("*.py")]
    graph = {path: {*sources._imported_files(path.read_text(encoding="utf-8"), path)} - {path} for path in files}
    assert len([*TopologicalSorter(graph).static_order()]) == len(files) > 200


def contract(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on a copy of the project, laid out as its import names are."""
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "EDGEWISE_ROOT"}
    environment |= {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "pipeline", root / "edgewise", ignore=shutil.ignore_patterns("__pycache__"))
    for leaf in ("models", "targets", "calib_data"):
        shutil.copytree(ROOT / leaf, root / "edgewise" / leaf, ignore=shutil.ignore_patterns("__pycache__"))
    return root


FORBIDDEN = {
    "a package uses what stands over it": ("store/entries.py", "from edgewise.run import session"),
    "an import for a type is an import": (
        "store/machine.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edgewise.recipe import Recipe",
    ),
    "a stage knows another": ("stages/fold.py", "from edgewise.stages.prune import coupling"),
    "a target knows another": ("targets/vulkan.py", "from edgewise.targets import openvino"),
    "a leaf knows the pipeline": ("models/lenet.py", "from edgewise import errors"),
    "a new package has no place yet": ("elsewhere/__init__.py", ""),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_contract_turns_red(laid: Path, what: str) -> None:
    name, line = FORBIDDEN[what]
    path = laid / "edgewise" / name
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        done = contract(laid)
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before, encoding="utf-8")
    assert done.returncode != 0, done.stdout
    assert "BROKEN" in done.stdout or "elsewhere" in done.stdout + done.stderr


def test_the_contract_holds(laid: Path) -> None:
    done = contract(laid)
    assert done.returncode == 0, done.stdout + done.stderr
