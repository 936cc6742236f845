"""What a bare import of this project loads, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = {"executorch", "coremltools", "onnx", "onnxruntime", "onnxscript"}


def modules(package: str) -> list[str]:
    """Every module of a package, except the one that runs on import."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__")]


def loaded(names: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter after importing ``names``."""
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_no_module_of_the_project_loads_a_backend() -> None:
    names = [name for package in ("pipeline", "models", "targets", "calib_data") for name in modules(package)]
    assert len(names) > 40
    assert loaded(names) & BACKENDS == set()


def test_packages_themselves_and_the_catalogue_do_not_even_load_torch() -> None:
    names = ["pipeline", "models", "targets", "calib_data", "edgewise.catalogue", "edgewise.__main__"]
    assert loaded(names) & (BACKENDS | {"torch", "numpy"}) == set()


@pytest.mark.parametrize("leaf", ["models", "calib_data", "targets"])
def test_leaves_stand_alone(leaf: str) -> None:
    others = {"pipeline", "models", "calib_data", "targets"} - {leaf}
    assert loaded(modules(leaf)) & others == set()
