"""Modules that call convolutions and batch norms as functions, in place of layers: found, and taken as tapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.errors import first_line
from edgewise.network import recording, surgery
from edgewise.network.linear_map import Unlike

_CALLED = frozenset({"conv2d", "conv_transpose2d", "batch_norm"})
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d)
_ROWS = 5


def modules_with_functions(model: nn.Module, images: Tensor) -> list[str]:
    """The innermost modules that call such a function themselves, the outer ones first; '' is the network."""
    watcher = _Watcher()
    with _stack_kept(model, watcher), torch.inference_mode(), watcher:
        model(images.clone())
    own = {name: model.get_submodule(name) for name in sorted(watcher.found)}
    return [name for name, module in own.items() if not type(module).__module__.startswith("torch.nn")]


def record_layer(model: nn.Module, name: str, images: Tensor) -> recording.Recorded | str:
    """The tape of one module, found by running the network on images [N, C, H, W]; or why there is none."""
    module = model.get_submodule(name)
    calls: list[Any] = []

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((given, named))

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.inference_mode():
            model(images.repeat(_ROWS, 1, 1, 1)[:_ROWS])
    except Exception as error:  # the user's code may raise anything
        return f"it takes no batch of {_ROWS} ({first_line(error)})"
    finally:
        hook.remove()
    if len(calls) != 1:
        return f"it runs {len(calls)} times in one pass"
    ((arguments, keywords),) = calls
    if keywords or len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        return "it is not called with one tensor"
    try:
        record = recording.record(module, arguments[0].clone())
        return record if _answers_alike(module, record, arguments[0]) else "its recorded operators answer otherwise"
    except Unlike as unlike:
        return f"it computes {unlike}"


def replace(model: nn.Module, recordings: Mapping[str, recording.Recorded]) -> nn.Module:
    """A copy of ``model`` with a tape in each named module's place."""
    new_model = surgery.apply(model, surgery.Replace({name: one.description for name, one in recordings.items()}))
    for name, one in recordings.items():
        place = new_model.get_submodule(name)
        _fill_tape(place, one)
        place.train(model.get_submodule(name).training)
    return new_model


@torch.no_grad()
def _fill_tape(built: nn.Module, recording_of_layer: recording.Recorded) -> None:
    state = built.state_dict()
    for key, tensor in recording_of_layer.tensors.items():
        state[key].copy_(tensor)


def _answers_alike(module: nn.Module, record: recording.Recorded, example: Tensor) -> bool:
    """For as many rows as it was recorded with, and for fewer; a count of them that is written into a shape takes no fewer."""
    with torch.random.fork_rng(devices=[]):
        layer = surgery.construct(record.description).eval()
    _fill_tape(layer, record)
    try:
        with torch.inference_mode():
            return all(
                torch.allclose(layer(example[:rows].clone()), module(example[:rows].clone()), rtol=1e-4, atol=1e-5)
                for rows in (_ROWS, 2)
            )
    except Exception:  # the user's code may raise anything
        return False


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its subclass hook unannotated
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()
        self.inside: list[tuple[str, nn.Module]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name.split("::")[-1] in _CALLED and self.inside and type(self.inside[-1][1]) not in _LAYERS:
            self.found.add(self.inside[-1][0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _stack_kept(model: nn.Module, watcher: _Watcher) -> Iterator[None]:
    def enter(name: str) -> Callable[..., None]:
        return lambda module, given: watcher.inside.append((name, module))

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(lambda *_: watcher.inside.pop() and None, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
