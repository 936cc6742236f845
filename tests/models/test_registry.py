"""The text scan, the registrations and the metadata agree for every architecture."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise import models

ROOT = Path(models.__file__).parent.parent


def test_every_registration_is_listed_and_every_listed_name_is_registered() -> None:
    for name in models.names():
        assert models.get(name).name == name
    assert set(models._REGISTRY) == set(models.names())


def test_listing_imports_no_torch() -> None:
    code = "from edgewise import models\nimport sys; models.names(); assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_families_import_torch_only() -> None:
    """Standard library, torch and this folder; nothing else may be needed to build a network."""
    allowed = set(sys.stdlib_module_names) | {"torch"}
    for path in (ROOT / "models").glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                module = line.split()[1]
                ours = module == "edgewise.models" or module.startswith("edgewise.models.")
                assert ours or module.split(".")[0] in allowed, f"{path.name}: {line}"


@pytest.mark.parametrize("name", models.names())
def test_metadata(name: str) -> None:
    spec = models.get(name)
    channels = spec.input_shape[0]
    assert len(spec.mean) == len(spec.std) == channels
    assert all(0 <= mean < 1 for mean in spec.mean)
    assert all(0 < std <= 1 for std in spec.std)
    assert spec.small_input is None or spec.small_input[0] == channels
    assert spec.summary.endswith(".")
    assert len(spec.summary) < 100
    parameters = inspect.signature(spec.build).parameters
    assert parameters["num_classes"].default == spec.num_classes
    assert parameters["in_channels"].default == channels
    assert set(spec.small) <= set(parameters)


@pytest.mark.parametrize("name", models.names())
def test_classifier_names_the_layer_with_the_classes(name: str) -> None:
    spec = models.get(name)
    with torch.device("meta"):
        model = spec.build(num_classes=7, in_channels=2, **spec.small)
    last = model.get_submodule(spec.classifier)
    assert isinstance(last, nn.Linear | nn.Conv2d)
    assert last.weight.shape[0] == 7
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 2


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(models.ModelError, match="Did you mean 'resnet18'"):
        models.get("resnet_18")
