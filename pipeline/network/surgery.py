"""Changes of a network's structure as plain data, so that a compressed network is rebuilt without unpickling anything.

A network carries the operations that made it from its architecture's ``build()``, in order. Each is a frozen dataclass
of JSON values that, called with a network, changes its structure in place; the tensors come from a safetensors file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from edgewise.errors import StageError
from edgewise.models import _layers
from edgewise.network.tape import Tape, placeholder

M = TypeVar("M", bound=nn.Module)

_HISTORY = "edgewise_surgery"

_REPLACEMENTS: dict[str, type[nn.Module]] = {
    "SeparableConv": _layers.SeparableConv,
    "GridMean": _layers.GridMean,
    "PassOn": _layers.PassOn,
    "Conv2d": nn.Conv2d,
    "ConvTranspose2d": nn.ConvTranspose2d,
    "Linear": nn.Linear,
    "Identity": nn.Identity,
    "Sequential": nn.Sequential,
    "AvgPool2d": nn.AvgPool2d,
    "MaxPool2d": nn.MaxPool2d,
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d,
    "Flatten": nn.Flatten,
    "ReLU": nn.ReLU,
    "BatchNorm1d": nn.BatchNorm1d,
    "BatchNorm2d": nn.BatchNorm2d,
    "Dropout": nn.Dropout,
    "ZeroPad2d": nn.ZeroPad2d,
    "ReflectionPad2d": nn.ReflectionPad2d,
    "ReplicationPad2d": nn.ReplicationPad2d,
    "CircularPad2d": nn.CircularPad2d,
}


@dataclass(frozen=True)
class Resize:
    """Gives modules other channel counts: the difference between a network before and after pruning."""

    attributes: Mapping[str, Mapping[str, Any]]
    """Module name -> its plain attributes that changed (out_channels, groups, num_heads, …)."""
    shapes: Mapping[str, list[int]]
    """State-dict key -> the tensor's new shape."""

    def __call__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        for name, values in self.attributes.items():
            for key, value in values.items():
                setattr(modules[name], key, tuple(value) if isinstance(value, list) else value)
            module = modules[name]
            if isinstance(module, _layers.PadShortcut):
                module.remap(module.in_channels, module.source)
        for key, shape in self.shapes.items():
            owner, _, leaf = key.rpartition(".")
            _set_empty(modules[owner], leaf, shape)


@dataclass(frozen=True)
class Replace:
    """Puts freshly built modules in the place of others (an Identity where one is removed)."""

    modules: Mapping[str, Mapping[str, Any]]
    """Module name ('': the network itself) -> {"type": a name this file knows, "args": keyword arguments}; for type
    Sequential {"type": "Sequential", "children": [the same, ...]}; for type Tape as ``recording.record`` describes it."""

    def __call__(self, model: nn.Module) -> nn.Module:
        for name, description in self.modules.items():
            owner, _, leaf = name.rpartition(".")
            with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
                layer = construct(description)
            layer.train(model.get_submodule(name).training)  # a norm in another mode than its network answers otherwise
            if not name:
                return layer
            setattr(model.get_submodule(owner), leaf, layer)
        return model


class Operation(Protocol):
    """A change of structure: a frozen dataclass of JSON values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Change(Operation, Protocol):
    """One that is done in place."""

    def __call__(self, model: nn.Module) -> nn.Module | None:
        """Change ``model`` in place, or return what takes its place."""


def apply(model: nn.Module, operation: Change) -> nn.Module:
    """A copy of ``model`` with ``operation`` done and entered in its history; new tensors hold no useful values yet."""
    return apply_in_place(copy.deepcopy(model), operation)


def apply_in_place(model: nn.Module, operation: Change) -> nn.Module:
    """As ``apply``, on ``model`` itself or, where the operation makes another, on that."""
    before = history(model)
    new_model = operation(model) or model
    object.__setattr__(new_model, _HISTORY, before)
    return record(new_model, operation)


def record(model: M, operation: Operation) -> M:
    """Enter an operation already done on ``model`` in its history, and return the model."""
    object.__setattr__(model, _HISTORY, (*history(model), operation))
    return model


def history(model: nn.Module) -> tuple[Operation, ...]:
    """The operations that made ``model`` from its architecture."""
    operations: tuple[Operation, ...] = getattr(model, _HISTORY, ())
    return operations


def difference(before: nn.Module, after: nn.Module) -> Resize:
    """What pruning changed from ``before`` to ``after``, two networks with the same module names.

    Raises StageError when the modules differ in more than attributes and shapes.
    """
    old, new = dict(before.named_modules()), dict(after.named_modules())
    if old.keys() != new.keys() or any(type(old[name]) is not type(new[name]) for name in old):
        raise StageError("the two networks have different modules; only attributes and shapes may differ")
    attributes = {name: attribute for name in old if (attribute := _changed_fields(old[name], new[name]))}
    before_shapes = {key: list(tensor.shape) for key, tensor in before.state_dict().items()}
    shapes = {key: list(t.shape) for key, t in after.state_dict().items() if list(t.shape) != before_shapes.get(key)}
    return Resize(attributes=attributes, shapes=shapes)


def _changed_fields(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    old, new = _plain_fields(before), _plain_fields(after)
    return {key: value for key, value in new.items() if old.get(key) != value}


def _plain_fields(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training" and _is_plain(v)}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _set_empty(module: nn.Module, name: str, shape: list[int]) -> None:
    old = getattr(module, name)
    fresh = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, fresh)  # saved with the rest, whether or not it was before


def construct(description: Mapping[str, Any]) -> nn.Module:
    """The freshly initialised module that a description of Replace stands for."""
    kind = description["type"]
    if kind == "Tape":
        return _construct_tape(description)
    if kind not in _REPLACEMENTS:
        raise StageError(f"unknown kind of module {kind!r}; known: {', '.join(_REPLACEMENTS)}")
    if kind == "Sequential":
        return nn.Sequential(*[construct(child) for child in description["children"]])
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in description.get("args", {}).items()}
    return _REPLACEMENTS[kind](**arguments)


def _construct_tape(description: Mapping[str, Any]) -> nn.Module:
    tape = Tape(description["steps"], description["returns"])
    for name, layer in description["layers"].items():
        tape.add_module(name, construct(layer))
    for name, fields in description["tensors"].items():
        tensor = placeholder(fields)
        if isinstance(tensor, nn.Parameter):
            tape.register_parameter(name, tensor)
        else:
            tape.register_buffer(name, tensor)
    return tape
