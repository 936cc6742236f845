"""What a bare import of this project loads, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.store import sources

BACKENDS = {"executorch", "coremltools", "onnx", "onnxruntime", "onnxscript"}
LEAVES = ("models", "targets", "calib_data")


def modules(package: str) -> list[str]:
    """Every module of a package, except the one that runs on import."""
    folder = sources._FOLDERS[package]
    names = [(package, *path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
    return [".".join(name).removesuffix(".__init__") for name in names if name[-1] != "__main__"]


def loaded(names: list[str]) -> set[str]:
    """Modules in a fresh interpreter, outside of this checkout, after importing ``names``."""
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.home(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_no_module_of_the_project_loads_a_backend() -> None:
    names = [name for package in sources._FOLDERS for name in modules(package)]
    assert len(names) > 200
    assert tops(loaded(names)) & BACKENDS == set()


def test_packages_themselves_and_the_catalogue_do_not_even_load_torch() -> None:
    names = ["edgewise", *(f"edgewise.{leaf}" for leaf in LEAVES), "edgewise.catalogue", "edgewise.__main__"]
    assert tops(loaded(names)) & (BACKENDS | {"torch", "numpy"}) == set()


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_stand_alone(leaf: str) -> None:
    found = {name.split(".")[1] for name in loaded(modules(f"edgewise.{leaf}")) if name.startswith("edgewise.")}
    assert found - {"public_names"} == {leaf}  # the face's own table of names
