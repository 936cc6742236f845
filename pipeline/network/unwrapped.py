"""A user's network out of what it came wrapped in: compiled, spread over devices, averaged, traced, in half precision."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from edgewise.errors import RequestError

_GRAPH_ONLY = frozenset({"_graph", "_code", "train", "eval", "_forward_pre_hooks"})


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """A network in float32 on the CPU, with nothing around it."""

    model: nn.Module
    told: tuple[str, ...]
    """What was taken off, in sentences."""


def unwrap_network(network: nn.Module, name: str) -> Unwrapped:
    """``network``, called ``name``, without its wrappers, in float32; changed in place. Raises RequestError for a
    TorchScript module, whose code is compiled away, and for one without values."""
    counts: Counter[str] = Counter()
    bare = _without_wrapper(network, counts)
    bare, synchronised = _with_own_norms(bare)
    for module in bare.modules():
        _refuse_compiled_code(module, name)
        module._compiled_call_impl = None
        _detach_computed_weights(module)
    sentences = [f"the network is taken out of its {kind}" + _times_text(count) for kind, count in counts.items()]
    return Unwrapped(model=bare, told=(*sentences, *synchronised, *_in_float32(bare, name)))


def _times_text(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def _without_wrapper(module: nn.Module, counts: Counter[str]) -> nn.Module:
    """The module inside, however often it is wrapped, and the same for what it holds."""
    while (inner := _inner_module(module)) is not None:
        counts[type(module).__name__] += 1
        module = inner
    if isinstance(module, GraphModule):
        counts["fx graph"] += 1
        module = _from_graph(module)
    for key, child in list(module._modules.items()):
        if child is not None:
            module._modules[key] = _without_wrapper(child, counts)
    return module


def _inner_module(module: nn.Module) -> nn.Module | None:
    inner: Any = None
    # What defines a compiled module takes a second and a half to import, and whoever made one has imported it.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        inner = module._orig_mod
    elif isinstance(
        module,
        (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel),
    ):
        inner = module.module
    return inner if isinstance(inner, nn.Module) else None


def _with_own_norms(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Batch norms that share their statistics between processes as ordinary ones, which evaluation cannot tell apart."""
    shared = {name: module for name, module in model.named_modules() if type(module) is nn.SyncBatchNorm}
    for name, norm in shared.items():
        own = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        own.load_state_dict(norm.state_dict(), assign=True)
        own.train(norm.training)
        if not name:
            return own, ()
        model.set_submodule(name, own)
    count = len(shared)
    return model, (f"{count} SyncBatchNorm {'is' if count == 1 else 'are'} taken as BatchNorm2d",) if count else ()


def _from_graph(graph: GraphModule) -> nn.Module:
    """An ordinary module with the graph's generated forward and its layers; a graph itself would count as captured."""
    kind = type("FromGraph", (nn.Module,), {"forward": type(graph).forward})
    module: nn.Module = kind()
    module.__dict__.update({key: value for key, value in vars(graph).items() if key not in _GRAPH_ONLY})
    return module


def _refuse_compiled_code(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise RequestError(
            f"{name} is, or holds, a TorchScript module, whose structure cannot be changed any more; wanted the "
            "torch.nn.Module that it was scripted or traced from, with its weights as --weights"
        )


def _detach_computed_weights(module: nn.Module) -> None:
    """Weights that a hook computes anew at each call stand between calls as results with a history, which no copy takes."""
    for key, value in vars(module).items():
        if isinstance(value, Tensor) and not value.is_leaf:
            module.__dict__[key] = value.detach()


def _in_float32(model: nn.Module, name: str) -> list[str]:
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    concrete = {key: t for key, t in tensors.items() if not is_lazy(t)}
    empty = [key for key, tensor in concrete.items() if tensor.is_meta]
    if empty:
        raise RequestError(
            f"{name} was built without values: {empty[0]} and {len(empty) - 1} others lie on the meta device"
        )
    other = {str(t.dtype).removeprefix("torch.") for t in concrete.values() if t.is_floating_point()} - {"float32"}
    if any(tensor.device.type != "cpu" for tensor in concrete.values()):
        model.cpu()
    if not other:
        return []
    model.float()
    return [
        f"the network came in {' and '.join(sorted(other))} and is taken in float32; a file's precision is the recipe's"
    ]
