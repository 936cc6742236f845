"""The networks of timm and torchvision by name, where the package is installed: ``timm:NAME``, ``torchvision:NAME``.

Their own normalisation and input size come along. Weights are fresh; ``--weights pretrained`` has the package fetch its
own, or a file of them is given.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edgewise.errors import RequestError, first_line
from edgewise.models import IMAGENET_MEAN, IMAGENET_STD, Spec
from edgewise.targets import MissingBackend

PACKAGES = ("timm", "torchvision")
PRETRAINED = "pretrained"
"""Given in place of a file of weights: the package's own."""

_MOST = 40
_INSTALL = "python -m pip install --no-deps {0} huggingface_hub pyyaml torchvision==0.28.*"


def is_of_a_package(reference: str) -> bool:
    """Whether a model's reference names one of another package."""
    return reference.partition(":")[0] in PACKAGES and ":" in reference and ".py:" not in reference


def spec_of(reference: str) -> Spec:
    """The spec of ``timm:NAME`` or ``torchvision:NAME``. Raises MissingBackend without the package, RequestError for a name
    that it does not have."""
    package, _, name = reference.partition(":")
    spec = _timm_spec(name) if package == "timm" else _torchvision_spec(name)
    return replace(spec, name=reference)


def version_of(reference: str) -> str:
    """The installed package's version, which belongs to whatever is kept of its networks."""
    return version(reference.partition(":")[0])


def load_pretrained(reference: str, num_classes: int, in_channels: int) -> nn.Module:
    """The network with the package's own weights, fetched by it. Raises RequestError where there are none, or none can be
    had, or they are for other classes."""
    spec = spec_of(reference)
    if num_classes != spec.num_classes:
        raise RequestError(
            f"the weights of {reference} are for {spec.num_classes} classes, the data has {num_classes}; give --weights FILE "
            "of a training on these classes, or leave --weights out and train"
        )
    try:
        network: nn.Module = spec.build(num_classes=num_classes, in_channels=in_channels, pretrained=True)
    except Exception as error:
        reason = first_line(error)
        raise RequestError(f"no weights of {reference} could be had ({reason}); give --weights FILE") from error
    return network


def _timm_spec(name: str) -> Spec:
    timm = _import_package("timm")
    _check_known(name, timm.list_models(), "timm")
    config = timm.get_pretrained_cfg(name)
    facts: dict[str, Any] = {} if config is None else config.to_dict()
    channels, height, width = facts.get("input_size") or (3, 224, 224)
    return Spec(
        name=name,
        build=partial(_build_timm, name),
        input_shape=(channels, height, width),
        num_classes=facts.get("num_classes") or 1000,
        mean=tuple(facts.get("mean") or IMAGENET_MEAN),
        std=tuple(facts.get("std") or IMAGENET_STD),
        classifier="",
        summary=_summary(facts.get("crop_pct"), facts.get("interpolation")),
    )


def _build_timm(name: str, num_classes: int = 1000, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    network: nn.Module = _import_package("timm").create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
    )
    return network


def _torchvision_spec(name: str) -> Spec:
    models = _torchvision_models()
    _check_known(name, models.list_models(module=models), "torchvision")
    entries = list(models.get_model_weights(name))
    weights = models.get_model_weights(name).DEFAULT if entries else None
    how = weights.transforms() if weights is not None else None
    side = how.crop_size[0] if how is not None else 224
    return Spec(
        name=name,
        build=partial(_build_torchvision, name),
        input_shape=(3, side, side),
        num_classes=len(weights.meta["categories"]) if weights is not None else 1000,
        mean=tuple(how.mean) if how is not None else IMAGENET_MEAN,
        std=tuple(how.std) if how is not None else IMAGENET_STD,
        classifier="",
        summary="" if how is None else _summary(side / how.resize_size[0], how.interpolation.value),
    )


def _build_torchvision(name: str, num_classes: int = 1000, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    if in_channels != 3:
        raise RequestError(f"torchvision:{name} takes images of 3 channels, the data has {in_channels}")
    weights = "DEFAULT" if pretrained else None
    network: nn.Module = _torchvision_models().get_model(name, weights=weights, num_classes=num_classes)
    return network


def _summary(crop: float | None, interpolation: str | None) -> str:
    """How its publishers cut and scaled the images."""
    return f"published with {interpolation or 'bilinear'} scaling and the middle {crop or 0.875:.0%} of each side"


def _check_known(name: str, names: Sequence[str], package: str) -> None:
    bare = name.split(".")[0]  # timm's tags, as in resnet18.a1_in1k
    if bare in names:
        return
    near = difflib.get_close_matches(bare, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"{package} has no network {name!r}.{hint} It has {len(names)}, from {names[0]} to {names[-1]}")


def _import_package(package: str) -> ModuleType:
    if importlib.util.find_spec(package) is None:
        raise MissingBackend(f"{package} is not installed; install it with: {_INSTALL.format(package)}")
    _torchvision_models()  # timm imports torchvision
    return importlib.import_module(package)


def _torchvision_models() -> ModuleType:
    """torchvision's architectures. A CPU build of torch lacks torchvision's own operators, which no network here calls:
    each that it misses is declared, until it can be imported."""
    if importlib.util.find_spec("torchvision") is None:
        raise MissingBackend(f"torchvision is not installed; install it with: {_INSTALL.format('')}".replace("  ", " "))
    for _ in range(_MOST):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _declare_operators().define(f"{missing[1]}() -> ()")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise MissingBackend(
        f"torchvision still misses operators after {_MOST} were declared; install one that fits this torch"
    )


_LIBRARY: list[Any] = []


def _declare_operators() -> Any:
    """The library that the missing operators are declared in; it must live as long as they."""
    if not _LIBRARY:
        _LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
    return _LIBRARY[0]
