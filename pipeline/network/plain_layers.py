"""Every layer that computes a convolution or a matrix product in a way of its own, as torch's plain layer.

Folding, pruning, substitution and fitting change the numbers of plain layers. A subclass of ``nn.Conv2d`` that pads by
itself, a convolution whose weight is standardised or normalised on the way, a wrapper that adds a low-rank term: each is
replaced by the plain layer (with a padding before it where no convolution has such a one) that computes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewise.network import functional_layers, surgery
from edgewise.network.linear_map import LinearMap, Unlike, linear_map_of
from edgewise.network.recording import Recorded

PLAIN = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A network of plain layers, and what became of those that were none."""

    model: nn.Module
    taken: Mapping[str, str]
    """Layer -> its class, as it was, and what it is now."""
    left: Mapping[str, str]
    """Layer -> its class, and why it stays as it was."""

    def sentences(self) -> list[str]:
        """Both, for people: layers of one class and fate in one line."""
        return [
            *(f"{names}: {text}" for names, text in _group_notes(self.taken)),
            *(f"{names}: {text}" for names, text in _group_notes(self.left)),
        ]


def is_plain(module: nn.Module) -> bool:
    """Whether it is exactly one of torch's layers, with a weight of its own and nothing hooked into its call."""
    return (
        type(module) in PLAIN
        and "weight" in module._parameters
        and not parametrize.is_parametrized(module)
        and not module._forward_pre_hooks
        and not module._forward_hooks
    )


def with_plain_layers(model: nn.Module, images: Tensor, *others: Tensor) -> Plain:
    """A copy of ``model`` whose layers are plain, found by running it on normalised ``images`` [N, C, H, W].

    ``others``: images of other sizes at which it must answer the same. The same answers come out up to float32 rounding;
    the model itself where there is nothing to replace.
    """
    outcomes: dict[str, _Outcome] = {}
    for batch in (images, *others):
        _survey_modules(model, batch, outcomes)
    twice = _under_two_names(model)
    maps: dict[str, LinearMap] = {}
    remaining: dict[str, str] = {}
    for name, outcome in outcomes.items():
        module = model.get_submodule(name)
        if isinstance(outcome.computed, str):
            remaining |= {name: outcome.computed} if _looks_like_a_layer(module) else {}
        elif outcome.to_replace and name in twice:
            remaining[name] = "the network holds it under two names"
        elif outcome.to_replace:
            maps[name] = outcome.computed
    maps = {name: linear_map for name, linear_map in maps.items() if not _is_inside(name, maps)}
    new_model = replace_layers(model, maps) if maps else model
    if maps and not all(_same_answers(model, new_model, batch) for batch in (images, *others)):
        remaining |= dict.fromkeys(maps, "the plain layer in its place answers otherwise")
        maps, new_model = {}, model
    kinds = {name: _module_kind(model.get_submodule(name)) for name in (*maps, *remaining)}
    notes = {name: f"{kinds[name]}, taken as {_map_words(linear_map)}" for name, linear_map in maps.items()}
    alone = {
        name: f"{kinds[name]}, left as it is: {why}" for name, why in remaining.items() if not _is_inside(name, maps)
    }
    return _with_functions_as_layers(Plain(model=new_model, taken=notes, left=alone), (images, *others))


def _with_functions_as_layers(plain: Plain, batches: Sequence[Tensor]) -> Plain:
    """The same for modules that call convolutions and batch norms as functions."""
    model, notes, remaining = plain.model, dict(plain.taken), dict(plain.left)
    recordings: dict[str, Recorded] = {}
    with _in_evaluation(model):
        for name in functional_layers.modules_with_functions(model, batches[0]):
            if _is_inside(name, recordings):
                continue
            one = functional_layers.record_layer(model, name, batches[0])
            if isinstance(one, str):
                remaining.setdefault(name, f"{_module_kind(model.get_submodule(name))}, left as it is: {one}")
            else:
                recordings[name] = one
    new_model = functional_layers.replace(model, recordings) if recordings else model
    if recordings and not all(_same_answers(model, new_model, batch) for batch in batches):
        remaining |= {
            name: f"{_module_kind(model.get_submodule(name))}, left as it is: its layers answer otherwise"
            for name in recordings
        }
        recordings, new_model = {}, model
    for name, one in recordings.items():
        layers = Counter(layer["type"] for layer in one.description["layers"].values())
        inside = ", ".join(f"{count} {kind}" for kind, count in layers.items())
        notes[name] = f"{_module_kind(model.get_submodule(name))}, whose functions are taken as layers ({inside})"
    remaining = {
        name: why for name, why in remaining.items() if name not in recordings and not _is_inside(name, recordings)
    }
    return Plain(model=new_model, taken=notes, left=remaining)


def _module_kind(module: nn.Module) -> str:
    return type(module).__name__ + (
        " with a hook" if module._forward_pre_hooks and type(module) in _WITH_WEIGHTS else ""
    )


def replace_layers(model: nn.Module, maps: Mapping[str, LinearMap]) -> nn.Module:
    """A copy of ``model`` with a plain layer in each named one's place."""
    with torch.random.fork_rng(devices=[]):
        new_model = surgery.apply(model, surgery.Replace({name: _describe_map(m) for name, m in maps.items()}))
    with torch.no_grad():
        for name, linear_map in maps.items():
            place = new_model.get_submodule(name)
            layer = place[1] if isinstance(place, nn.Sequential) else place
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            layer.weight.copy_(linear_map.kernel)
            if layer.bias is not None:
                layer.bias.copy_(linear_map.bias)
            place.train(model.get_submodule(name).training)
    return new_model


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    computed: LinearMap | str
    """What the module computes, or what there is in it that is no linear map."""
    by_one_plain_layer: bool = False
    """A plain layer inside computes it all, padding aside."""

    @property
    def to_replace(self) -> bool:
        """Whether a plain layer in its place is worth it: what is plain stays, and nothing may become dearer."""
        linear_map = self.computed
        return (
            isinstance(linear_map, LinearMap)
            and not self.by_one_plain_layer
            and linear_map.merged_macs <= linear_map.macs
        )


def _survey_modules(model: nn.Module, images: Tensor, outcomes: dict[str, _Outcome]) -> None:
    """Enter what every module that is not plain and ran computes, held against what it was found to compute before."""
    examining = False

    def listen(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal examining
            if not examining:
                examining = True
                try:
                    outcomes[name] = _agree_outcomes(outcomes.get(name), _examine_module(module, given))
                finally:
                    examining = False

        return hook

    odd = {n: m for n, m in model.named_modules() if n and any(True for _ in m.parameters()) and not is_plain(m)}
    hooks = [module.register_forward_pre_hook(listen(name), prepend=True) for name, module in odd.items()]
    try:
        with _in_evaluation(model), torch.no_grad():
            model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()


def _examine_module(module: nn.Module, inputs: tuple[Any, ...]) -> _Outcome:
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() < 2:
        return _Outcome(computed="it is not called with one tensor")
    ran: list[nn.Module] = []
    plain = [part for part in module.modules() if is_plain(part)]
    hooks = [part.register_forward_hook(lambda part, *_: ran.append(part)) for part in plain]
    try:
        linear_map = linear_map_of(module, inputs[0].clone())
    except Unlike as unlike:
        return _Outcome(computed=f"it computes {unlike}")
    finally:
        for hook in hooks:
            hook.remove()
    return _Outcome(computed=linear_map, by_one_plain_layer=linear_map.alone and len(ran) == 1)


def _agree_outcomes(before: _Outcome | None, now: _Outcome) -> _Outcome:
    """The outcome of a module that runs several times in one pass."""
    if before is None or isinstance(before.computed, str):
        return before or now
    if isinstance(now.computed, str):
        return now
    same = _describe_map(before.computed) == _describe_map(now.computed)
    return now if same else _Outcome(computed="it pads otherwise each time that it runs")


def _looks_like_a_layer(module: nn.Module) -> bool:
    """Whether a person would expect it to be pruned or folded: one of torch's that something was done to, or one that
    holds a kernel itself."""
    if type(module) in _WITH_WEIGHTS:
        return parametrize.is_parametrized(module)
    return isinstance(module, _WITH_WEIGHTS) or any(p is not None and p.dim() == 4 for p in module._parameters.values())


def _under_two_names(model: nn.Module) -> set[str]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {name for several in names.values() if len(several) > 1 for name in several}


def _is_inside(name: str, outer: Iterable[str]) -> bool:
    return any(not other or name.startswith(f"{other}.") for other in outer if other != name)


def _describe_map(linear_map: LinearMap) -> dict[str, Any]:
    """The plain layer for surgery.Replace, behind a padding where it needs one."""
    has_bias = bool(linear_map.bias.any())
    if linear_map.kernel.dim() == 2:
        features, outputs = linear_map.kernel.shape[1], linear_map.kernel.shape[0]
        return {"type": "Linear", "args": {"in_features": features, "out_features": outputs, "bias": has_bias}}
    left, right, top, bottom = linear_map.padding
    even = left == right and top == bottom
    args = {
        "in_channels": linear_map.kernel.shape[1] * linear_map.groups,
        "out_channels": linear_map.kernel.shape[0],
        "kernel_size": list(linear_map.kernel.shape[2:]),
        "stride": list(linear_map.stride),
        "padding": [top, left] if even else [0, 0],
        "dilation": list(linear_map.dilation),
        "groups": linear_map.groups,
        "padding_mode": linear_map.padding_mode if even else "zeros",
        "bias": has_bias,
    }
    layer = {"type": "Conv2d", "args": args}
    if even:
        return layer
    pad = {"type": _PADDINGS[linear_map.padding_mode], "args": {"padding": list(linear_map.padding)}}
    return {"type": "Sequential", "children": [pad, layer]}


_PADDINGS = {
    "zeros": "ZeroPad2d", "reflect": "ReflectionPad2d", "replicate": "ReplicationPad2d", "circular": "CircularPad2d",
}  # fmt: skip


def _map_words(linear_map: LinearMap) -> str:
    if linear_map.kernel.dim() == 2:
        return "a linear layer"
    left, right, top, bottom = linear_map.padding
    if left == right and top == bottom:
        return "a convolution"
    return f"a convolution behind a padding of {left} left, {right} right, {top} above and {bottom} below"


def _group_notes(notes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    groups: dict[str, list[str]] = {}
    for name, text in notes.items():
        groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield ", ".join(name or "the network" for name in names[:_NAMED]) + more, text


_NAMED = 4


def _same_answers(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with _in_evaluation(one), _in_evaluation(other), torch.no_grad():
        expected = one(images.clone())
        try:
            answers = other(images.clone())
        except Exception:  # a size is written into what was recorded; the code around it may raise anything
            return False
    difference = float((expected - answers).abs().max())
    return difference <= _TOLERANCE * max(1.0, float(expected.abs().max()))


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
