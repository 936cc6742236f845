"""Which parts of a network can be taken out, so that what stands before them feeds what stands behind.

A *residual block* is a module whose input is added to what it computes: without that computation the shortcut stands
alone (Veit, Wilber, Belongie 2016, arXiv 1605.06431: such a network hardly misses a single one). Of nested ones the
innermost count, so that a transformer block made of two residual modules can lose either. Elsewhere, a *run* is a layer with
weights in an ``nn.Sequential`` together with the normalisations and activations behind it, where output and input are of
one shape. What the network looks into from outside (as ``nn.TransformerEncoder`` into its first layer) stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.models._layers import PassOn
from edgewise.network.torch_calls import Watched

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part that can be taken out."""

    name: str
    """The module's, or that of a run's first."""
    modules: tuple[str, ...]
    """What is replaced by the identity."""
    shape: tuple[int, ...]
    """Of its input, with the batch."""
    kind: str
    """Blocks of one kind take the same time: what the modules say of themselves, and the shape."""
    residual: bool


@dataclass
class _Seen:
    """What one pass tells of a module."""

    calls: int = 0
    given: Any = None
    answered: Any = None
    others: int = 0
    """Arguments beside the first."""
    adds_input: bool = False

    @property
    def keeps_shape(self) -> bool:
        """Whether it ran once, from one tensor to another of the same shape and type."""
        inputs, outputs = self.given, self.answered
        tensors = isinstance(inputs, Tensor) and isinstance(outputs, Tensor)
        return self.calls == 1 and tensors and (inputs.shape, inputs.dtype) == (outputs.shape, outputs.dtype)


def find_blocks(model: nn.Module, images: Tensor) -> list[Block]:
    """All parts of ``model`` that can be taken out, in order of execution, found by running it on ``images`` [N, C, H, W]."""
    clone = copy.deepcopy(model).eval()
    calls = _watch_modules(clone, images)
    modules = dict(clone.named_modules())
    can = [name for name, s in calls.items() if name and s.keeps_shape and s.adds_input and _has_weights(modules[name])]
    residual = [name for name in can if not any(other.startswith(f"{name}.") for other in can)]
    blocks = [_make_block(clone, (name,), calls, residual=True) for name in residual]
    blocks += [_make_block(clone, run, calls, residual=False) for run in _removable_runs(modules, calls, residual)]
    order = list(calls)
    blocks = [block for block in blocks if _runs_without(clone, block, images[:1])]
    return sorted(blocks, key=lambda block: order.index(block.modules[-1]))


def _make_block(model: nn.Module, names: tuple[str, ...], seen: Mapping[str, _Seen], *, residual: bool) -> Block:
    shape = tuple(seen[names[0]].given.shape)
    kind = f"{shape} {[model.get_submodule(name) for name in names]}"
    return Block(name=names[0], modules=names, shape=shape, kind=kind, residual=residual)


def _runs_without(model: nn.Module, block: Block, images: Tensor) -> bool:
    """Whether ``model``, left as it was, still answers where the block passes on what it is given."""
    parts = {name: model.get_submodule(name) for name in block.modules}
    for name in parts:
        model.set_submodule(name, PassOn())
    try:
        with torch.no_grad():
            model(images)
        return True
    except Exception:  # a network's own code raises what it likes
        return False
    finally:
        for name, module in parts.items():
            model.set_submodule(name, module)


def _removable_runs(
    modules: Mapping[str, nn.Module], seen: Mapping[str, _Seen], residual: list[str]
) -> Iterator[tuple[str, ...]]:
    members = list(residual)
    for name, module in modules.items():
        if type(module) is nn.Sequential and not _is_taken(name, members):
            for run in _runs_of(name, module, seen):
                members += run
                yield run


def _is_taken(name: str, names: list[str]) -> bool:
    """Whether a container lies in something that is taken. What holds it is no hindrance: its children are looked at."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def _runs_of(prefix: str, container: nn.Sequential, seen: Mapping[str, _Seen]) -> Iterator[tuple[str, ...]]:
    start: list[str] = []
    for child, module in container.named_children():
        name = f"{prefix}.{child}" if prefix else child
        call = seen.get(name, _Seen())
        if start and call.keeps_shape and not _has_weights(module):
            start.append(name)
            continue
        if start:
            yield tuple(start)
        simple = isinstance(module, (nn.Conv2d, nn.Linear)) or not any(s.adds_input for s in _calls_inside(name, seen))
        start = [name] if simple and call.keeps_shape and call.others == 0 and _has_weights(module) else []
    if start:
        yield tuple(start)


def _calls_inside(name: str, seen: Mapping[str, _Seen]) -> Iterator[_Seen]:
    return (call for other, call in seen.items() if other == name or other.startswith(f"{name}."))


def _has_weights(module: nn.Module) -> bool:
    """Whether it computes with a matrix or a kernel; the scales of a normalisation do not count."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _watch_modules(model: nn.Module, images: Tensor) -> dict[str, _Seen]:
    """What every module was given and returned in one pass, in order of execution's end."""
    watch = _Additions()
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(watch.enter(name), with_kwargs=True))
        hooks.append(module.register_forward_hook(watch.leave(name)))
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # so that attention is seen as its parts
    try:
        with torch.no_grad(), watch:
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for hook in hooks:
            hook.remove()
    return watch.ended


@dataclass
class _Open:
    name: str
    given: Any
    others: int
    adds_input: bool = False


class _Additions(Watched):
    """Hears of additions to which a module that is being called contributes the very tensor it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[str, _Seen] = {}
        self._open: list[_Open] = []

    def enter(self, name: str) -> Callable[..., None]:
        """The hook for what happens before a module runs."""

        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            every = [*args, *named.values()]
            self._open.append(_Open(name, every[0] if every else None, len(every) - 1))

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        """The hook for what happens after it ran."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            mine = self._open.pop()
            call = self.ended.setdefault(name, _Seen())
            call.calls += 1
            call.given, call.answered, call.others = mine.given, output, mine.others
            call.adds_input |= mine.adds_input

        return hook

    def before(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        if getattr(func, "__name__", "") not in _ADDITIONS or len(tensors) != 2 or tensors[0].shape != tensors[1].shape:
            return
        for module in self._open:
            module.adds_input |= any(value is module.given for value in tensors)
