"""From a model's name, or the user's own file, to a spec, a network and its weights."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewise import models
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.network import zoo
from edgewise.network.stated import read_stated
from edgewise.network.unwrapped import Unwrapped, unwrap_network
from edgewise.network.user_files import name_functions
from edgewise.network.where import line_clause, line_of
from edgewise.store import user_code
from edgewise.store.sources import code_of, source_digest


@dataclass(frozen=True)
class Base:
    """What a network was built from."""

    model: str
    """A registered name, timm:NAME, torchvision:NAME, or path/to/net.py:function."""
    num_classes: int
    in_channels: int
    layers: str = ""
    """SHA-256 of the network as it prints itself, where its code is foreign: files that are no code may decide what it is."""


def spec_of(reference: str) -> Spec:
    """The spec of a registered name, of ``timm:NAME`` or ``torchvision:NAME``, or of ``path/to/net.py:function``.

    A user's file may say ``mean``, ``std``, ``input_shape``, ``resize``, ``interpolation``, ``classes`` and ``classifier``
    as module constants; otherwise the mean and deviation are 0.5, which the spec's ``origins`` then do not tell of, and
    the classifier is the last linear or convolutional layer. Raises RequestError for a constant that means nothing.
    """
    if reference.endswith(".py"):
        raise RequestError(name_functions(reference))
    if zoo.is_of_a_package(reference):
        return zoo.spec_of(reference)
    if ".py:" not in reference:
        return models.get(reference)
    build = load_function(reference)
    module = user_code.import_file(_file_of(reference))
    spec = models._REGISTRY.get(getattr(build, "__name__", ""))
    if spec is not None and spec.build is build:
        return spec
    statement, origins = read_stated(module, Path(reference.rpartition(":")[0]))
    return Spec(
        name=reference,
        build=build,
        classifier=getattr(module, "classifier", ""),
        summary=(build.__doc__ or "").strip().split("\n")[0],
        origins=origins,
        **statement,
    )


def is_foreign(reference: str) -> bool:
    """Whether a model's code is not this project's: the user's own, or another package's."""
    return ".py:" in reference or zoo.is_of_a_package(reference)


def load_function(reference: str) -> Callable[..., Any]:
    """The function named by ``path/to/file.py:function``, or one that copies the network of that name.

    Raises RequestError when there is no such file or function.
    """
    path_text, _, name = reference.rpartition(":")
    path = _file_of(reference)
    if not path.is_file():
        raise RequestError(f"{reference!r}: there is no file {path_text}")
    module = user_code.import_file(path)
    function = getattr(module, name, None)
    if isinstance(function, nn.Module):
        return partial(copy.deepcopy, function)
    if not callable(function):
        choices = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise RequestError(f"{path_text} has no function {name!r}; it defines: {', '.join(choices) or 'none'}")
    loaded: Callable[..., Any] = function
    return loaded


def _file_of(reference: str) -> Path:
    return Path(reference.rpartition(":")[0]).resolve()


def describe_base(reference: str, num_classes: int, in_channels: int) -> Base:
    """What a network is built from, with a digest of its layers where its code is not this project's."""
    base = Base(reference, num_classes, in_channels)
    if not is_foreign(reference):
        return base
    with torch.random.fork_rng(devices=[]):
        return replace(base, layers=hashlib.sha256(print_layers(build(base))).hexdigest())


def print_layers(network: nn.Module) -> bytes:
    """A network as it prints itself, without the places in memory that functions print."""
    return re.sub(r"0x[0-9a-f]+", "", repr(network)).encode("utf-8", "backslashreplace")


def build(base: Base) -> nn.Module:
    """A freshly initialised network, out of its wrappers and in float32 (``unwrap_network``)."""
    return build_told(base).model


def build_told(base: Base) -> Unwrapped:
    """As ``build``, with what was taken off. Arguments that the build function does not take are left out."""
    function = spec_of(base.model).build
    shape_options = {"num_classes": base.num_classes, "in_channels": base.in_channels}
    parameters = _function_parameters(function, base.model)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        with _importable_beside(base.model):
            network = function(**{k: v for k, v in shape_options.items() if takes_all or k in parameters})
    except Exception as error:
        if not is_foreign(base.model) or isinstance(error, RequestError):
            raise
        cause = f"{type(error).__name__}: {error}"
        raise RequestError(f"{base.model} could not be built: {cause}{line_clause(line_of(error))}") from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"{base.model} returned {type(network).__name__}; wanted a torch.nn.Module")
    return unwrap_network(network, base.model)


def _function_parameters(function: Callable[..., Any], name: str) -> Mapping[str, inspect.Parameter]:
    if (
        isinstance(function, type) and getattr(function, "__init__", None) is nn.Module.__init__
    ):  # takes anything, to refuse it
        return {}
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} is no function that builds a network: {error}") from error


def _importable_beside(reference: str) -> AbstractContextManager[None]:
    """While open, the files beside a user's network can be imported: a function may do so only when it is called."""
    return user_code.importable(_file_of(reference).parent) if ".py:" in reference else nullcontext()


def classifier_of(model: nn.Module, spec: Spec) -> str:
    """The dotted name of the layer whose outputs are the classes."""
    if spec.classifier:
        return spec.classifier
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise RequestError(f"{spec.name} has no linear or convolutional layer to be its classifier")
    return str(layers[-1])


def code_digest(reference: str) -> str:
    """SHA-256 over the source that defines a model, with all that it imports of this project and of the user's."""
    if ".py:" in reference:
        return source_digest(_file_of(reference))
    if zoo.is_of_a_package(reference):
        return f"{code_of(zoo.spec_of)[0]} {zoo.version_of(reference)}"
    return code_of(spec_of(reference).build)[0]
