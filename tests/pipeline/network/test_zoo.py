"""Networks of other packages by name: their own normalisation, sizes and names; what is missing is told."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgewise.errors import RequestError
from edgewise.network import zoo
from edgewise.network.architecture import Base, build, code_digest, is_foreign, spec_of
from edgewise.network.start import begin_network
from edgewise.targets import MissingBackend

CONFIG = {"input_size": (3, 96, 64), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "num_classes": 7, "crop_pct": 0.9}


class Timm(ModuleType):
    """As much of the package as is asked for."""

    def list_models(self) -> list[str]:
        return ["tiny", "tinier"]

    def get_pretrained_cfg(self, name: str) -> Any:
        return SimpleNamespace(to_dict=lambda: CONFIG)

    def create_model(self, name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        if name == "tinier" and pretrained:
            raise OSError("no network to the hub")
        model = nn.Sequential(nn.Conv2d(in_chans, 2, 1), nn.Flatten(), nn.LazyLinear(num_classes))
        nn.init.constant_(model[0].weight, 3.0 if pretrained else 1.0)
        return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Timm("timm"))
    monkeypatch.setattr(zoo, "_torchvision_models", lambda: ModuleType("torchvision.models"))
    monkeypatch.setattr(zoo, "version", lambda package: "1.2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))


def test_its_own_facts_come_along(timm: None) -> None:
    spec = spec_of("timm:tiny")
    assert (spec.name, spec.input_shape, spec.mean, spec.std) == (
        "timm:tiny",
        (3, 96, 64),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert spec.num_classes == 7 and "90%" in spec.summary
    network = build(Base("timm:tiny", 4, 1))
    assert network[0].in_channels == 1 and network[2].out_features == 4
    assert code_digest("timm:tiny").endswith(" 1.2")


def test_a_name_that_it_does_not_have(timm: None) -> None:
    with pytest.raises(RequestError, match=r"no network 'tinyy'\. Did you mean 'tiny'"):
        spec_of("timm:tinyy")
    assert spec_of("timm:tiny.a1_in1k").name == "timm:tiny.a1_in1k"


def test_its_own_weights_where_they_can_be_had_and_fit(timm: None) -> None:
    from pathlib import Path

    images = torch.randn(2, 3, 4, 4)
    begun = begin_network(Base("timm:tiny", 7, 3), images, Path(zoo.PRETRAINED))
    assert float(begun.model[0].weight.detach().mean()) == 3
    assert float(begin_network(Base("timm:tiny", 7, 3), images).model[0].weight.detach().mean()) == 1
    with pytest.raises(RequestError, match="for 7 classes, the data has 10"):
        begin_network(Base("timm:tiny", 10, 3), images, Path(zoo.PRETRAINED))
    with pytest.raises(RequestError, match="no network to the hub"):
        begin_network(Base("timm:tinier", 7, 3), images, Path(zoo.PRETRAINED))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_package_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingBackend, match="is not installed; install it with: python -m pip"):
        spec_of(f"{package}:resnet18")


def test_what_is_foreign() -> None:
    assert [is_foreign(name) for name in ("timm:a", "torchvision:b", "net.py:f", "resnet18")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed; the session 'oracle' has it"
)
@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:regnet_x_400mf"])
def test_of_the_package_itself(name: str) -> None:
    from edgewise.network.fold_norms import without_norms
    from edgewise.network.plain_layers import with_plain_layers

    model, images = build(Base(name, 10, 3)).eval(), torch.randn(2, 3, 64, 64)
    folded = without_norms(with_plain_layers(model, images).model, images)
    convs = [sum(isinstance(m, nn.Conv2d) for m in network.modules()) for network in (model, folded)]
    assert convs[0] == convs[1] and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
