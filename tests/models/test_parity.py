"""The same parameters under the same names, and the same logits, as torchvision's and timm's own definitions.

Runs where both are installed beside a CPU build of torch (nox session ``oracle``), and skips elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.models._published import PUBLISHED

TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    *(f"efficientnet_b{i}" for i in range(8)),
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"shufflenet_v2_{size}" for size in ("x0_5", "x1_0", "x1_5", "x2_0")),
    "squeezenet1_0",
    "squeezenet1_1",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "vit_b_16",
)
TIMM = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "vit_tiny_patch16_224", "vit_small_patch16_224")
FIXED_SIZE = {"alexnet": (224, 224), "vgg11": (224, 224), **dict.fromkeys(TIMM[3:], (224, 224)), "vit_b_16": (224, 224)}
UNEVEN = (97, 75)


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[ModuleType, ModuleType]]:
    """torchvision.models and timm. A CPU build of torch lacks torchvision's own operators; declaring them is enough."""
    for package in ("torchvision", "timm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; the nox session 'oracle' has it")
    library = torch.library.Library("torchvision", "FRAGMENT")
    yield _torchvision_models(library), importlib.import_module("timm")
    del library


def _torchvision_models(library: torch.library.Library) -> ModuleType:
    for _ in range(20):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing[1]}() -> ()")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise AssertionError("torchvision still misses operators after twenty were declared")


def _random_state(reference: nn.Module) -> dict[str, Tensor]:
    """Values for every tensor that keep activations near unit size, so that an absolute 1e-4 means something."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in reference.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            deviation = 0.1 if tensor.dim() < 2 else (1 / tensor[0].numel()) ** 0.5
            state[name] = torch.randn(tensor.shape, generator=generator) * deviation
    return state


def _logits(model: nn.Module, state: dict[str, Tensor], images: Tensor) -> Tensor:
    model.load_state_dict(state, strict=True, assign=True)
    with torch.no_grad():
        logits: Tensor = model.eval()(images)
    return logits


def _compare(name: str, reference: nn.Module) -> None:
    with torch.device("meta"):
        ours = models.get(name).build()
    size = FIXED_SIZE.get(name, UNEVEN)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    state = _random_state(reference)
    wanted = _logits(reference, state, images)
    assert wanted.std() > 1e-2, "logits this flat could not tell two networks apart"
    torch.testing.assert_close(_logits(ours, state, images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, peers: tuple[Any, Any]) -> None:
    settings = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    with torch.device("meta"):
        reference = getattr(peers[0], name)(**settings)
    _compare(name, reference)


@pytest.mark.parametrize("name", TORCHVISION)
def test_published_figures(name: str, peers: tuple[Any, Any]) -> None:
    """Parameters and MACs as torchvision's own tables give them; there GoogLeNet has lost its side classifiers."""
    meta, ours = peers[0].get_model_weights(name).DEFAULT.meta, PUBLISHED[name]
    assert meta["num_params"] == (ours.params if name != "googlenet" else 6_624_904)
    assert ours.macs == pytest.approx(meta["_ops"] * 1e9)
    assert ours.source == "torchvision"


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, peers: tuple[Any, Any]) -> None:
    with torch.device("meta"):
        reference = peers[1].create_model(name)
    _compare(name, reference)


def test_googlenet_side_classifiers(peers: tuple[Any, Any]) -> None:
    """While training all three outputs agree; batch norms then use the batch, and dropout is off."""
    reference = peers[0].googlenet(init_weights=False, aux_logits=True, num_classes=10)
    ours = models.get("googlenet").build(num_classes=10)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    for model in (reference, ours):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    for found, wanted in zip(ours(images), reference(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in TORCHVISION if n.startswith(("efficientnet", "googlenet", "mobilenet"))])
def test_batch_norm_constants(name: str, peers: tuple[Any, Any]) -> None:
    """Eps and momentum are no part of a state dict; training and QAT depend on them."""
    settings = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    with torch.device("meta"):
        reference, ours = getattr(peers[0], name)(**settings), models.get(name).build()
    norms = [[(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)] for net in (reference, ours)]
    assert norms[0] == norms[1]


def test_dropout_and_stochastic_depth(peers: tuple[Any, Any]) -> None:
    for name in ("efficientnet_b3", "convnext_tiny", "mobilenet_v3_large"):
        with torch.device("meta"):
            reference, ours = getattr(peers[0], name)(), models.get(name).build()
        assert _probabilities(ours) == pytest.approx(_probabilities(reference))


def _probabilities(model: nn.Module) -> list[float]:
    kinds = ("Dropout", "StochasticDepth")
    return [float(module.p) for module in model.modules() if type(module).__name__ in kinds]
