"""What a module ran, as JSON values for a tape, and the tensors of the tape's layers.

For modules that call convolutions and batch norms as functions, with weights that they hold themselves or take from a
layer they never call. A tape is built from such a description without the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.network.linear_map import Unlike, arguments_by_name
from edgewise.network.tape import ENTRY

_KINDS: tuple[tuple[str, type], ...] = (
    ("dtype", torch.dtype),
    ("memory_format", torch.memory_format),
    ("layout", torch.layout),
)
_SHAPED = frozenset({"view", "reshape", "expand", "_unsafe_view", "unflatten"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """A module's tape as JSON values, and its tensors."""

    description: Mapping[str, Any]
    """For surgery.Replace."""
    tensors: Mapping[str, Tensor]
    """State-dict key of the built tape -> value."""


def record(module: nn.Module, given: Tensor) -> Recorded:
    """What ``module`` runs for ``given`` [N, …] in evaluation, N unlike every other size in it. Raises Unlike."""
    recorder = _Recorder(module, given)
    with torch.inference_mode(), recorder:
        result = module(given)
    returns = recorder.name_of(result) if isinstance(result, Tensor) else None
    if returns is None:
        raise Unlike("other than one tensor")
    idle = [name for name, p in module.named_parameters() if id(p) not in recorder.used]
    if idle:
        raise Unlike(f"something else in training: {idle[0]} has no part in its answers")
    layers, tensors = recorder.layers, recorder.tensors
    description: dict[str, Any] = {
        "type": "Tape",
        "steps": recorder.steps,
        "returns": returns,
        "layers": {name: layer.description for name, layer in layers.items()},
        "tensors": {name: _describe_tensor(tensor, recorder.is_trained(tensor)) for name, tensor in tensors.items()},
    }
    values = {f"{name}.{key}": t for name, layer in layers.items() for key, t in layer.tensors.items()}
    return Recorded(description=description, tensors={**values, **tensors})


def _describe_tensor(tensor: Tensor, trained: bool) -> dict[str, Any]:
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": kind, "trained": trained and tensor.is_floating_point()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass
class _Names:
    taken: set[str] = field(default_factory=lambda: {ENTRY, "steps", "returns", "training", "forward"})

    def fresh(self, wish: str) -> str:
        """``wish``, with a number behind it where it is taken."""
        base = wish.replace(".", "_") or "layer"
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its subclass hook unannotated
    """Writes down every operator that works on the module's input, or on what came of it."""

    def __init__(self, module: nn.Module, given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[dict[str, Any]] = []
        self.layers: dict[str, _Layer] = {}
        self.tensors: dict[str, Tensor] = {}
        self.used: set[int] = set()
        self._batch = len(given)
        self._owners = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        self._parameters = {id(p) for p in module.parameters()}
        self._made_of: dict[int, set[int]] = {}
        self._values: dict[int, str] = {id(given): ENTRY}
        self._alive: list[Any] = [given]
        self._names = _Names()
        self._count = 0

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a value that came of the input; None for a constant."""
        return self._values.get(id(tensor))

    def is_trained(self, tensor: Tensor) -> bool:
        """Whether a constant is a parameter, or made of some."""
        return bool(self._sources(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._alive += [tensors, results]
        if any(id(t) in self._values for t in tensors):
            if results:
                self._write(func, args, kwargs, result)
        else:
            sources = set().union(*(self._sources(t) for t in tensors)) if tensors else set()
            self._made_of.update({id(t): sources for t in results if id(t) not in self._owners})
        return result

    def _sources(self, tensor: Tensor) -> set[int]:
        """The parameters that a constant was made of."""
        return {id(tensor)} if id(tensor) in self._parameters else self._made_of.get(id(tensor), set())

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        arguments = arguments_by_name(func, args, kwargs)
        name = func._schema.name.split("::")[-1]
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) not in self._values:
                self.used |= self._sources(value)
        layer = _LAYERS[name](arguments, result) if name in _LAYERS else None
        step: dict[str, Any]
        if layer is not None and all(id(t) not in self._values for t in layer.tensors.values()):
            source = arguments.get("input", arguments.get("self"))
            step = {"layer": self._layer(layer), "args": [self._encoded(source, name)]}
        else:
            step = {
                "op": f"aten.{name}.{func._overloadname}",
                "args": [self._encoded(value, name) for value in args],
                "kwargs": {key: self._encoded(value, name) for key, value in kwargs.items()},
            }
            if func.namespace != "aten":
                raise Unlike(f"a {func}")
        self.steps.append({**step, "to": self._kept(result)})

    def _kept(self, result: Any) -> str | list[str]:
        if isinstance(result, Tensor):
            self._count += 1
            return self._values.setdefault(id(result), f"v{self._count}")
        names = []
        for item in result:
            text = self._kept(item) if isinstance(item, Tensor) else "unused"
            names.append(text if isinstance(text, str) else "unused")
        return names

    def _layer(self, layer: _Layer) -> str:
        for name, other in self.layers.items():
            same = other.description == layer.description and other.tensors.keys() == layer.tensors.keys()
            if same and all(other.tensors[key] is tensor for key, tensor in layer.tensors.items()):
                return name
        owner = self._owners.get(id(next(iter(layer.tensors.values()), None)), "")
        name = self._names.fresh(owner.rpartition(".")[0] or layer.description["type"].lower())
        self.layers[name] = layer
        return name

    def _encoded(self, value: Any, operator: str) -> Any:
        if isinstance(value, Tensor):
            return self._encoded_tensor(value)
        if isinstance(value, (list, tuple)):
            items = [self._encoded(item, operator) for item in value]
            if operator in _SHAPED and items and items[0] == self._batch:
                items[0] = {"batch": True}
            return items
        for kind, type_ in _KINDS:
            if isinstance(value, type_):
                return {kind: str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": True}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise Unlike(f"an argument of type {type(value).__name__}")

    def _encoded_tensor(self, value: Tensor) -> dict[str, str]:
        if id(value) in self._values:
            return {"value": self._values[id(value)]}
        for name, entry in self.tensors.items():
            if entry is value:
                return {"tensor": name}
        name = self._names.fresh(self._owners.get(id(value), "constant"))
        self.tensors[name] = value
        return {"tensor": name}


def _convolution_layer(a: Mapping[str, Any], result: Tensor) -> _Layer | None:
    weight, padding = a["weight"], a["padding"]
    if result.dim() != 4:
        return None
    args = {
        "in_channels": weight.shape[1] * a["groups"],
        "out_channels": len(weight),
        "kernel_size": list(weight.shape[2:]),
        "stride": _both_sides(a["stride"]),
        "padding": padding if isinstance(padding, str) else _both_sides(padding),
        "dilation": _both_sides(a["dilation"]),
        "groups": a["groups"],
        "bias": a["bias"] is not None,
    }
    return _Layer(description={"type": "Conv2d", "args": args}, tensors=_present_tensors(weight=weight, bias=a["bias"]))


def _transposed_layer(a: Mapping[str, Any], result: Tensor) -> _Layer | None:
    weight = a["weight"]
    args = {
        "in_channels": len(weight),
        "out_channels": weight.shape[1] * a["groups"],
        "kernel_size": list(weight.shape[2:]),
        "stride": _both_sides(a["stride"]),
        "padding": _both_sides(a["padding"]),
        "output_padding": _both_sides(a["output_padding"]),
        "dilation": _both_sides(a["dilation"]),
        "groups": a["groups"],
        "bias": a["bias"] is not None,
    }
    description = {"type": "ConvTranspose2d", "args": args}
    return _Layer(description=description, tensors=_present_tensors(weight=weight, bias=a["bias"]))


def _linear_layer(a: Mapping[str, Any], result: Tensor) -> _Layer | None:
    weight = a["weight"]
    args = {"in_features": weight.shape[1], "out_features": len(weight), "bias": a["bias"] is not None}
    return _Layer(description={"type": "Linear", "args": args}, tensors=_present_tensors(weight=weight, bias=a["bias"]))


def _batch_norm(a: Mapping[str, Any], result: Tensor) -> _Layer | None:
    if a["training"] or a["running_mean"] is None or result.dim() not in (2, 4):
        return None
    args = {
        "num_features": len(a["running_mean"]),
        "eps": a["eps"],
        "momentum": a["momentum"],
        "affine": a["weight"] is not None,
    }
    if (a["weight"] is None) != (a["bias"] is None):
        return None
    tensors = _present_tensors(
        weight=a["weight"], bias=a["bias"], running_mean=a["running_mean"], running_var=a["running_var"]
    )
    return _Layer(
        description={"type": "BatchNorm2d" if result.dim() == 4 else "BatchNorm1d", "args": args}, tensors=tensors
    )


def _dropout_layer(a: Mapping[str, Any], result: Tensor) -> _Layer | None:
    return None if a["train"] else _Layer(description={"type": "Dropout", "args": {"p": a["p"]}}, tensors={})


def _both_sides(value: Sequence[int]) -> list[int]:
    return list(value) * 2 if len(value) == 1 else list(value)


def _present_tensors(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


_LAYERS: Mapping[str, Callable[[Mapping[str, Any], Tensor], _Layer | None]] = {
    "conv2d": _convolution_layer,
    "conv_transpose2d": _transposed_layer,
    "linear": _linear_layer,
    "batch_norm": _batch_norm,
    "dropout": _dropout_layer,
}
