"""Runs a network once on a blank image and records every operator that the computation consists of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgewise.errors import RequestError
from edgewise.measure.cost.macs import multiply_accumulates


@dataclass(frozen=True)
class Value:
    """A tensor as an operator saw it: which storage it looks into, and through what shape."""

    storage: int
    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """A module being called: its dotted name, the module, and a number that tells calls of a shared module apart."""

    name: str
    module: nn.Module
    number: int
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One executed ATen operator; tensors among its arguments are ``Value`` here."""

    name: str
    """Without namespace and overload: ``convolution``, ``add``."""
    arguments: dict[str, Any]
    """Under the names of the operator's schema, with what the caller left out at its default."""
    outputs: tuple[Value, ...]
    macs: int
    is_view: bool
    """It computes nothing: every output looks into an input's storage, and none was written to."""
    is_rounding: bool
    """It imitates a number format (fake-quantization, an observer) and is no layer of the network."""
    call: Call | None
    """The innermost module being called."""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Every tensor argument, in order."""
        return tuple(v for v in tree_leaves(self.arguments) if isinstance(v, Value))


@dataclass(kw_only=True)
class Trace:
    """What one forward pass did."""

    batch: int
    """1, or the batch a captured graph is fixed to."""
    image: int
    """Storage of the input."""
    model: nn.Module
    """The copy that ran."""
    weights: dict[int, str]
    """Storage -> dotted name, for parameters and buffers."""
    operations: list[Operation] = field(default_factory=list)
    nbytes: dict[int, int] = field(default_factory=dict)
    """Size of every storage seen."""
    activations: set[int] = field(default_factory=set)
    """Storages whose content depends on the image; the others are weights, or follow from weights alone."""
    origins: dict[int, frozenset[str]] = field(default_factory=dict)
    """For a storage that is no activation: the parameters and buffers that it was made from."""
    results: frozenset[int] = frozenset()
    """Storages that the network returned."""


def record_trace(model: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """One forward pass of ``model`` in evaluation mode at [1, *input_shape], operator by operator.

    A copy runs, so that ``model`` keeps its mode, its statistics and its observers' ranges. A captured graph
    (``torch.export(...).module()``) whose batch is fixed runs at that batch, and ``Trace.batch`` says so.

    Raises RequestError, naming the layer and the shape it was given, when the image does not go through.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise RequestError(f"wanted an input shape (channels, height, width), each at least 1; found {input_shape}")
    clone = _copy_for_inference(model)
    batch = _captured_batch(clone)
    image = _blank_image(clone, (batch, *input_shape))
    recorder = _Recorder(clone, image, batch)
    with _calls_followed(clone, recorder.calls), _quiet_run(), recorder:
        try:
            result = clone(image)
        except Exception as error:
            raise RequestError(_what_failed(image, recorder, error)) from error
    recorder.finish(result)
    return recorder.trace


def _copy_for_inference(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # torch warns of its own tree specification while it copies a captured graph
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        clone = copy.deepcopy(model)
    for module in clone.modules():
        module.training = False  # a captured graph forbids eval(); its operators carry their own mode
    return clone


def _captured_batch(model: nn.Module) -> int:
    graphs = (m for m in model.modules() if isinstance(m, torch.fx.GraphModule))
    first = next(graphs, None)
    if first is None:
        return 1
    for node in first.graph.nodes:
        example = node.meta.get("val")
        if node.op == "placeholder" and isinstance(example, Tensor) and example.dim() == 4:
            return example.shape[0] if isinstance(example.shape[0], int) else 1
    return 1


def _blank_image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    floating = (t for t in model.parameters() if t.is_floating_point())
    first = next(floating, torch.empty(0))
    return torch.zeros(shape, dtype=first.dtype, device=first.device)


@contextmanager
def _quiet_run() -> Iterator[None]:
    """No gradients, no use of the caller's random numbers, and attention as its parts rather than one opaque kernel."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _calls_followed(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Keep ``calls`` the stack of modules being called; after a failure it still holds where that was."""
    numbers = iter(range(2**62))

    def enter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def push(module: nn.Module, args: tuple[Any, ...]) -> None:
            shapes = tuple(tuple(a.shape) for a in tree_leaves(args) if isinstance(a, Tensor))
            calls.append(Call(name=name, module=module, number=next(numbers), inputs=shapes))

        return push

    def leave(module: nn.Module, args: tuple[Any, ...], result: object) -> None:
        calls.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _what_failed(image: Tensor, recorder: _Recorder, error: Exception) -> str:
    complaint = f"wanted an image {tuple(image.shape)} to go through the network; found that it fails"
    call = recorder.calls[-1] if recorder.calls else None
    reason = str(error).strip().split("\n")[0]
    if call is None or not call.name:
        where = f"in the operator {recorder.current} on shapes {recorder.current_shapes}"
    else:
        shapes = ", ".join(map(str, call.inputs))
        where = f"in layer {call.name!r} ({type(call.module).__name__}), which was given {shapes}"
    return f"{complaint} {where}: {reason}. Give the input size and the channels that the network was made for."


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its subclass hook unannotated
    """Sees every ATen operator below autograd, whoever called it: a module, a function, or a captured graph."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, which takes as long as torch itself, to tell it that this is not to be compiled;
        nothing here ever is."""
        return False

    def __init__(self, model: nn.Module, image: Tensor, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.current = "(none yet)"
        self.current_shapes: tuple[tuple[int, ...], ...] = ()
        self._held: dict[int, StorageWeakRef] = {}
        self._same_as: dict[int, int] = {}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        names = {self._storage(tensor): name for name, tensor in reversed(tensors)}
        key = self._storage(image)
        self.trace = Trace(batch=batch, image=key, model=model, weights=names)
        self.trace.activations.add(key)
        self.trace.nbytes[key] = image.untyped_storage().nbytes()
        self.trace.origins.update({key: frozenset({name}) for key, name in names.items()})

    def finish(self, result: object) -> None:
        """Note which storages the network returned."""
        self.trace.results = frozenset(self._storage(t) for t in tree_leaves(result) if isinstance(t, Tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there, what autograd would have taken apart arrives whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.current, self.current_shapes = func._schema.name, tuple(tuple(t.shape) for t in tensors)
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, tensors, result)
        return result

    def _note(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], result: object
    ) -> None:
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        call = self.calls[-1] if self.calls else None
        if _only_rounds(func._schema.name):
            self._same_as.update({self._storage(t): self._storage(tensors[0]) for t in results})
        inputs = [self._storage(t) for t in tensors]
        outputs = tuple(self._value(t) for t in results)
        self._spread(inputs, [v.storage for v in outputs])
        operation = Operation(
            name=func._schema.name.split("::")[-1].rstrip("_") or func._schema.name,
            arguments=tree_map(self._value_or_same, _by_name(func, args, kwargs)),
            outputs=outputs,
            macs=multiply_accumulates(func, args, result),
            is_view=not func._schema.is_mutable and all(v.storage in inputs for v in outputs),
            is_rounding=_only_rounds(func._schema.name) or _is_observer(call),
            call=call,
        )
        self.trace.operations.append(operation)

    def _spread(self, inputs: list[int], outputs: list[int]) -> None:
        """What an activation goes into is an activation; what weights alone go into is still a weight."""
        active = any(key in self.trace.activations for key in inputs)
        for key in outputs:
            if key in self.trace.weights:
                continue  # a running statistic being updated stays a buffer
            if active:
                self.trace.activations.add(key)
            else:
                made_from = (self.trace.origins.get(i, frozenset()) for i in inputs)
                self.trace.origins[key] = frozenset().union(*made_from)

    def _storage(self, tensor: Tensor) -> int:
        """A number of this tensor's storage that stays its own: the weak reference keeps the address from reuse."""
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        key: int = self._held.setdefault(reference.cdata, reference).cdata
        return self._same_as.get(key, key)

    def _value(self, tensor: Tensor) -> Value:
        key = self._storage(tensor)
        self.trace.nbytes.setdefault(key, tensor.untyped_storage().nbytes())
        return Value(key, tuple(tensor.shape), tensor.element_size())

    def _value_or_same(self, argument: Any) -> Any:
        return self._value(argument) if isinstance(argument, Tensor) else argument


def _by_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    schema = func._schema.arguments
    arguments = dict(zip((a.name for a in schema), args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | arguments | kwargs


def _is_observer(call: Call | None) -> bool:
    """Whether the module being called is torchao's (or torch.ao's) and watches or rounds a tensor."""
    return call is not None and type(call.module).__module__.startswith(
        ("torchao.quantization", "torch.ao.quantization")
    )


def _only_rounds(name: str) -> bool:
    """Whether the operator stands for a tensor's number format: the deployed file has one tensor there, not two."""
    namespace, _, operator = name.partition("::")
    return namespace in {"quantized_decomposed", "torchao"} or "fake_quant" in operator or "obs_fq" in operator
