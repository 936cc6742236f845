"""What a network has to be before it can be a network as data: all of it registered with PyTorch, and fit to be copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from edgewise.errors import RequestError


def check_whole(model: nn.Module, name: str) -> None:
    """Raise RequestError for layers that PyTorch does not know of, and for what takes no copy, by the attribute."""
    _check_registered(model, name)
    _check_copied(model, name)


def _check_registered(model: nn.Module, name: str) -> None:
    ids = {id(parameter) for parameter in model.parameters()}
    for owner, module in model.named_modules():
        for attribute, value in vars(module).items():
            hidden = [m for m in _modules_in(value) if any(id(p) not in ids for p in m.parameters())]
            if hidden and not attribute.startswith("_"):
                raise RequestError(
                    f"{name}: {_spelled(owner, attribute)} holds {len(hidden)} layers, {type(hidden[0]).__name__} first, in a "
                    f"{type(value).__name__}, where PyTorch neither trains, saves nor loads them; use nn.ModuleList or "
                    "nn.ModuleDict"
                )


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        return  # which is registered, or hidden on purpose
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
    for entry in entries:
        if isinstance(entry, nn.Module):
            yield entry
        else:
            yield from _modules_in(entry)


def _check_copied(model: nn.Module, name: str) -> None:
    try:
        copy.deepcopy(model)
    except Exception as error:
        place = next(_uncopied(model), "the network")
        raise RequestError(
            f"{name} cannot be copied, which every step on it wants: {place} takes no copy ({error}). Make it where it is "
            "used, not when the network is built"
        ) from error


def _uncopied(model: nn.Module) -> Iterator[str]:
    for owner, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules":
                try:
                    copy.deepcopy(value)
                except Exception:
                    yield _spelled(owner, attribute)


def _spelled(owner: str, attribute: str) -> str:
    return f"self.{attribute}" + (f" of layer {owner!r}" if owner else "")
