"""From a model's name, or the user's own file, to a spec, a network and its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from edgewise import models
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.network.stated import read_stated
from edgewise.network.user_files import name_functions
from edgewise.store.sources import code_of


@dataclass(frozen=True)
class Base:
    """What a network was built from."""

    model: str
    """A registered name, or path/to/net.py:function."""
    num_classes: int
    in_channels: int


def spec_of(reference: str) -> Spec:
    """The spec of a registered name, or of the user's ``path/to/net.py:function``.

    A user's file may say ``mean``, ``std``, ``input_shape``, ``resize``, ``interpolation``, ``classes`` and ``classifier``
    as module constants; otherwise the mean and deviation are 0.5, which the spec's ``origins`` then do not tell of, and
    the classifier is the last linear or convolutional layer. Raises RequestError for a constant that means nothing.
    """
    if reference.endswith(".py"):
        raise RequestError(name_functions(reference))
    if ".py:" not in reference:
        return models.get(reference)
    build = load_function(reference)
    module = sys.modules[build.__module__]
    spec = models._REGISTRY.get(build.__name__)
    if spec is not None and spec.build is build:
        return spec
    stated, origins = read_stated(module, Path(reference.rpartition(":")[0]))
    return Spec(
        name=reference,
        build=build,
        classifier=getattr(module, "classifier", ""),
        summary=(build.__doc__ or "").strip().split("\n")[0],
        origins=origins,
        **stated,
    )


def load_function(reference: str) -> Callable[..., Any]:
    """The function named by ``path/to/file.py:function``. Raises RequestError when there is no such file or function."""
    path_text, _, name = reference.rpartition(":")
    path = Path(path_text).resolve()
    if not path.is_file():
        raise RequestError(f"{reference!r}: there is no file {path_text}")
    module = _import_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        choices = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise RequestError(f"{path_text} has no function {name!r}; it defines: {', '.join(choices) or 'none'}")
    loaded: Callable[..., Any] = function
    return loaded


def _import_file(path: Path) -> ModuleType:
    name = f"edgewise_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def build(base: Base) -> nn.Module:
    """A freshly initialised network. Arguments that the build function does not take are left out."""
    function = spec_of(base.model).build
    wanted = {"num_classes": base.num_classes, "in_channels": base.in_channels}
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    network = function(**{k: v for k, v in wanted.items() if takes_all or k in parameters})
    if not isinstance(network, nn.Module):
        raise RequestError(f"{base.model} returned {type(network).__name__}; wanted a torch.nn.Module")
    return network


def classifier_of(model: nn.Module, spec: Spec) -> str:
    """The dotted name of the layer whose outputs are the classes."""
    if spec.classifier:
        return spec.classifier
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise RequestError(f"{spec.name} has no linear or convolutional layer to be its classifier")
    return str(layers[-1])


def code_digest(reference: str) -> str:
    """SHA-256 over the source that defines a model, with everything of this project that it imports."""
    return code_of(spec_of(reference).build)[0]
