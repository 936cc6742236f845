"""The names that a recipe is written with."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgewise
from edgewise import public_names

NAMES = [
    "Augment", "AveragePool", "Finetune", "Fold", "Limits", "Packaging", "PooledHead", "Preprocess", "Prune", "Quantize",
    "Recipe", "RemoveBlocks", "Separate", "Sizes", "Sparsify", "Train", "Training", "Traits", "deploy",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert edgewise.__all__ == NAMES
    assert set(NAMES) <= set(dir(edgewise))
    assert set(public_names.HOMES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_the_class_of_its_home(name: str) -> None:
    value = getattr(edgewise, name)
    assert value.__name__ == name
    assert value.__module__ == f"edgewise.{public_names.HOMES[name]}"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgewise' has no attribute 'Prunes'"):
        _ = edgewise.Prunes


def test_importing_the_face_loads_no_torch() -> None:
    code = "import sys, edgewise; assert 'torch' not in sys.modules; edgewise.Limits; edgewise.Fold; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
