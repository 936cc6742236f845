"""The ways in which a checkpoint can be read for a network, and the one that fits.

Training scripts lay the weights under a key of their own choice and with the prefixes of whatever was around the network.
Every dict of tensors in the file is a candidate, with every prefix that the network's own names allow; the one whose names
and shapes are the network's is taken. Where two fit with other values, the person says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import RequestError

_WRAPPERS = frozenset({"module", "_orig_mod"})
_SHOWN = 8
_DEPTH = 3
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One way to read a checkpoint."""

    key: str
    """Where the tensors lie in the file, keys joined by dots; empty: on top."""
    prefix: str
    """What stands before the network's names."""
    state: State
    """Under the network's names."""
    lead: str = ""
    """What stands before the network's names alone: it wraps the network whose weights they are."""
    beside: tuple[str, ...]
    """Names of tensors in the same dict that are not the network's."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    @property
    def misfits(self) -> int:
        """Number of names and shapes that are not the network's."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def place(self) -> str:
        """Key and prefix as one, by which a person may choose it."""
        return f"{self.key}.{self.prefix}".strip(".")

    def __str__(self) -> str:
        place = f"under {self.key!r}" if self.key else "as they stand"
        place += f", for the part {self.lead!r} that is the whole network" if self.lead else ""
        return place + (f", without the prefix {self.prefix!r}" if self.prefix else "")


def find_reading(model: nn.Module, content: Any, path: Path, key: str = "") -> Reading:
    """The reading of a file's ``content`` that fits ``model``; ``key`` names the place in the file, where there are several.

    Raises RequestError: none fits (with the nearest one's misfits), several do, or a value is not finite.
    """
    own = dict(model.state_dict())
    readings = [_held_against(own, reading) for reading in _readings(content, own)]
    if key:
        readings = [reading for reading in readings if key in (reading.key, reading.place)] or _no_such_key(
            content, path, key
        )
    if not readings:
        raise RequestError(
            f"{path}: wanted a state dict (name -> tensor), plain or under a key; found {_describe_content(content)}"
        )
    fit = _drop_duplicates([reading for reading in readings if not reading.misfits])
    if not fit:
        raise RequestError(_misfit_message(path, min(readings, key=lambda r: (r.misfits, len(r.prefix))), own))
    if len(fit) > 1:
        raise RequestError(_ambiguity_message(path, fit))
    _refuse_unusable(path, fit[0].state)
    return fit[0]


def _readings(content: Any, own: State) -> Iterator[Reading]:
    for key, tensors in _tensor_dicts(content, "", _DEPTH):
        if lead := _lead(own, tensors):
            yield Reading(key=key, prefix="", lead=lead, state=_rename_tensors(_under(lead, tensors), own), beside=())
        for prefix in _prefixes(tensors, own):
            inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            beside = tuple(name for name in tensors if not name.startswith(prefix))
            yield Reading(key=key, prefix=prefix, state=_rename_tensors(inside, own), beside=beside)


def _lead(own: State, tensors: State) -> str:
    """The beginning that all of the network's names share and none of the file's has; empty: there is no such."""
    first = next(iter(own), "").partition(".")[0] + "."
    shared = all(name.startswith(first) for name in own)
    return first if shared and not any(name.startswith(first) for name in tensors) else ""


def _under(lead: str, tensors: State) -> State:
    return {lead + name: tensor for name, tensor in tensors.items()}


def _tensor_dicts(content: Any, key: str, depth: int) -> Iterator[tuple[str, State]]:
    """Every dict in ``content`` that holds tensors, or arrays, under names, the outermost first."""
    entries = dict(enumerate(content)) if isinstance(content, (tuple, list)) else content
    if not isinstance(entries, Mapping):
        return
    tensors = {
        name: t for name, value in entries.items() if isinstance(name, str) and (t := _tensor(value)) is not None
    }
    if tensors:
        yield key, {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTED)}
    for name, value in entries.items():
        if depth and isinstance(name, (str, int)):
            yield from _tensor_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


_COUNTED = ("total_ops", "total_params")
"""Ends of the names under which profilers (thop) leave their counts in a network."""


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
    if not isinstance(value, Tensor):
        return None
    if value.is_quantized:
        return value.dequantize()
    return value if value.layout is torch.strided else value.to_dense()


def _prefixes(tensors: State, own: State) -> list[str]:
    """What may stand before the network's names in these, the empty one always among them."""
    prefixes = {""}
    bare = {name: _without_wrappers(name) for name in tensors}
    for key in list(own)[:2] + list(own)[-2:]:
        for name in tensors:
            if name.endswith(f".{key}"):
                prefixes.add(name.removesuffix(key))
        for name, short in bare.items():
            if short.endswith(f".{key}"):
                prefixes.add(_prefix_of(name, short.removesuffix(key)))
    return sorted(prefixes, key=len)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefix_of(name: str, short: str) -> str:
    """The beginning of ``name`` that becomes ``short`` once the wrappers' names are left out."""
    parts = name.split(".")
    for count in range(len(parts) + 1):
        lead = ".".join(parts[:count]) + "." if count else ""
        if _without_wrappers(lead) == short:
            return lead
    return short


def _rename_tensors(state: State, own: State) -> State:
    """The tensors under the network's names where only a wrapper's name inside, or torch's spelling, is between them."""
    return {_own_name(name, own): tensor for name, tensor in state.items()}


def _own_name(name: str, own: State) -> str:
    if name in own:
        return name
    short = _without_wrappers(name)
    for candidate in (short, *_other_spellings(short)):
        if candidate in own:
            return candidate
    return name


_SPELLINGS = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
    ("weight_orig", "parametrizations.weight.original"),
)


def _other_spellings(name: str) -> Iterator[str]:
    """Old and new names of a normalised weight."""
    for old, new in _SPELLINGS:
        for one, other in ((old, new), (new, old)):
            if name == one or name.endswith(f".{one}"):
                yield name.removesuffix(one) + other


def _held_against(own: State, reading: Reading) -> Reading:
    state = reading.state
    return Reading(
        key=reading.key,
        prefix=reading.prefix,
        state=state,
        lead=reading.lead,
        beside=reading.beside,
        missing=tuple(name for name in own if name not in state and not name.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in state if name not in own),
        misshapen=tuple(name for name in own if name in state and own[name].shape != state[name].shape),
    )


def _drop_duplicates(readings: list[Reading]) -> list[Reading]:
    """Without those that give the same values as an earlier one."""
    distinct: list[Reading] = []
    for reading in readings:
        if not any(_same_values(reading.state, other.state) for other in distinct):
            distinct.append(reading)
    return distinct


def _same_values(one: State, other: State) -> bool:
    return all(name in other and torch.equal(tensor, other[name]) for name, tensor in one.items())


def _refuse_unusable(path: Path, state: State) -> None:
    """Tensors without values, with values that are no numbers, and variances that nothing can have measured."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise RequestError(
                f"{path}: {name} has a shape and no values (it was saved from the meta device); save it once the weights "
                "are loaded"
            )
        if tensor.is_floating_point() and (wrong := int((~torch.isfinite(tensor)).sum())):
            raise RequestError(
                f"{path}: {name} holds {wrong} of {tensor.numel()} values that are not finite (NaN or infinity); such a "
                "network answers nothing. Give weights of a training that did not diverge"
            )
        if name.endswith("running_var") and (wrong := int((tensor < 0).sum())):
            raise RequestError(
                f"{path}: {name} holds {wrong} of {tensor.numel()} variances below 0, whose root is no number; give the "
                "weights as training left them"
            )


def _misfit_message(path: Path, near: Reading, own: State) -> str:
    lines = [f"the weights in {path} do not fit the model; read {near}, the nearest:"]
    shapes = [
        f"{name}: wanted {list(own[name].shape)}, found {list(near.state[name].shape)}" for name in near.misshapen
    ]
    for title, keys in (("missing", near.missing), ("unexpected", near.unexpected), ("wrongly shaped", shapes)):
        if keys:
            listing = "\n    ".join(keys[:_SHOWN]) + (
                f"\n    … and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            )
            lines.append(f"  {title} ({len(keys)}):\n    {listing}")
    return "\n".join([*lines, f"  {_advice(near, own)}"])


def _advice(near: Reading, own: State) -> str:
    sizes = {(own[name].shape[:1], near.state[name].shape[:1]) for name in near.misshapen}
    last = list(own)[-1].rpartition(".")[0]
    only_last = all(name.rpartition(".")[0] == last for name in near.misshapen)
    if not near.missing and not near.unexpected and len(sizes) == 1 and only_last:
        ((expected, actual),) = sizes
        return (
            f"Only the last layer differs: the file was trained for {actual[0]} classes, the network was built for the "
            f"{expected[0]} classes of the data. Give data with {actual[0]} classes, or weights for {expected[0]}."
        )
    if near.misshapen and not near.missing and not near.unexpected:
        return "All names fit: the file was saved from the same architecture with other widths, kernels or classes."
    return "Build the network with the arguments (depth, width, classes) that it had when these weights were saved."


def _ambiguity_message(path: Path, fit: list[Reading]) -> str:
    ways = "; ".join(str(reading) for reading in fit)
    return (
        f"{path} holds {len(fit)} sets of weights that fit the network, with other values ({ways}). "
        f"Say which one: --weights '{path}#{fit[-1].place}'"
    )


def _no_such_key(content: Any, path: Path, key: str) -> list[Reading]:
    places = ", ".join(repr(place) for place, _ in _tensor_dicts(content, "", _DEPTH) if place) or "none"
    raise RequestError(f"{path} holds no tensors under {key!r}; there are: {places}")


def _describe_content(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"{type(content).__name__} with {', '.join(list(map(str, content))[:5]) or 'nothing'}"
    return type(content).__name__
