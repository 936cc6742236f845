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
            *(f"{names}: {text}" for names, text in _grouped(self.taken)),
            *(f"{names}: {text}" for names, text in _grouped(self.left)),
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
    found: dict[str, _Outcome] = {}
    for batch in (images, *others):
        _survey(model, batch, found)
    twice = _under_two_names(model)
    taken: dict[str, LinearMap] = {}
    left: dict[str, str] = {}
    for name, outcome in found.items():
        module = model.get_submodule(name)
        if isinstance(outcome.computed, str):
            left |= {name: outcome.computed} if _looks_like_a_layer(module) else {}
        elif outcome.to_replace and name in twice:
            left[name] = "the network holds it under two names"
        elif outcome.to_replace:
            taken[name] = outcome.computed
    taken = {name: found for name, found in taken.items() if not _inside(name, taken)}
    changed = replace_layers(model, taken) if taken else model
    if taken and not all(_same_answers(model, changed, batch) for batch in (images, *others)):
        left |= dict.fromkeys(taken, "the plain layer in its place answers otherwise")
        taken, changed = {}, model
    kinds = {name: _kind(model.get_submodule(name)) for name in (*taken, *left)}
    told = {name: f"{kinds[name]}, taken as {_words(found)}" for name, found in taken.items()}
    alone = {name: f"{kinds[name]}, left as it is: {why}" for name, why in left.items() if not _inside(name, taken)}
    return _with_functions_as_layers(Plain(model=changed, taken=told, left=alone), (images, *others))


def _with_functions_as_layers(plain: Plain, batches: Sequence[Tensor]) -> Plain:
    """The same for modules that call convolutions and batch norms as functions."""
    model, taken, left = plain.model, dict(plain.taken), dict(plain.left)
    found: dict[str, Recorded] = {}
    with _in_evaluation(model):
        for name in functional_layers.modules_with_functions(model, batches[0]):
            if _inside(name, found):
                continue
            one = functional_layers.recorded(model, name, batches[0])
            if isinstance(one, str):
                left.setdefault(name, f"{_kind(model.get_submodule(name))}, left as it is: {one}")
            else:
                found[name] = one
    changed = functional_layers.replace(model, found) if found else model
    if found and not all(_same_answers(model, changed, batch) for batch in batches):
        left |= {
            name: f"{_kind(model.get_submodule(name))}, left as it is: its layers answer otherwise" for name in found
        }
        found, changed = {}, model
    for name, one in found.items():
        layers = Counter(layer["type"] for layer in one.description["layers"].values())
        inside = ", ".join(f"{count} {kind}" for kind, count in layers.items())
        taken[name] = f"{_kind(model.get_submodule(name))}, whose functions are taken as layers ({inside})"
    left = {name: why for name, why in left.items() if name not in found and not _inside(name, found)}
    return Plain(model=changed, taken=taken, left=left)


def _kind(module: nn.Module) -> str:
    return type(module).__name__ + (
        " with a hook" if module._forward_pre_hooks and type(module) in _WITH_WEIGHTS else ""
    )


def replace_layers(model: nn.Module, maps: Mapping[str, LinearMap]) -> nn.Module:
    """A copy of ``model`` with a plain layer in each named one's place."""
    with torch.random.fork_rng(devices=[]):
        changed = surgery.apply(model, surgery.Replace({name: _described(m) for name, m in maps.items()}))
    with torch.no_grad():
        for name, found in maps.items():
            place = changed.get_submodule(name)
            layer = place[1] if isinstance(place, nn.Sequential) else place
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            layer.weight.copy_(found.kernel)
            if layer.bias is not None:
                layer.bias.copy_(found.bias)
            place.train(model.get_submodule(name).training)
    return changed


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    computed: LinearMap | str
    """What the module computes, or what there is in it that is no linear map."""
    by_one_plain_layer: bool = False
    """A plain layer inside computes it all, padding aside."""

    @property
    def to_replace(self) -> bool:
        """Whether a plain layer in its place is worth it: what is plain stays, and nothing may become dearer."""
        found = self.computed
        return isinstance(found, LinearMap) and not self.by_one_plain_layer and found.merged_macs <= found.macs


def _survey(model: nn.Module, images: Tensor, found: dict[str, _Outcome]) -> None:
    """Enter what every module that is not plain and ran computes, held against what it was found to compute before."""
    examining = False

    def listen(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal examining
            if not examining:
                examining = True
                try:
                    found[name] = _agreed(found.get(name), _examined(module, given))
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


def _examined(module: nn.Module, given: tuple[Any, ...]) -> _Outcome:
    if len(given) != 1 or not isinstance(given[0], Tensor) or given[0].dim() < 2:
        return _Outcome(computed="it is not called with one tensor")
    ran: list[nn.Module] = []
    plain = [part for part in module.modules() if is_plain(part)]
    hooks = [part.register_forward_hook(lambda part, *_: ran.append(part)) for part in plain]
    try:
        found = linear_map_of(module, given[0].clone())
    except Unlike as unlike:
        return _Outcome(computed=f"it computes {unlike}")
    finally:
        for hook in hooks:
            hook.remove()
    return _Outcome(computed=found, by_one_plain_layer=found.alone and len(ran) == 1)


def _agreed(before: _Outcome | None, now: _Outcome) -> _Outcome:
    """The outcome of a module that runs several times in one pass."""
    if before is None or isinstance(before.computed, str):
        return before or now
    if isinstance(now.computed, str):
        return now
    same = _described(before.computed) == _described(now.computed)
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


def _inside(name: str, outer: Iterable[str]) -> bool:
    return any(not other or name.startswith(f"{other}.") for other in outer if other != name)


def _described(found: LinearMap) -> dict[str, Any]:
    """The plain layer for surgery.Replace, behind a padding where it needs one."""
    biased = bool(found.bias.any())
    if found.kernel.dim() == 2:
        features, outputs = found.kernel.shape[1], found.kernel.shape[0]
        return {"type": "Linear", "args": {"in_features": features, "out_features": outputs, "bias": biased}}
    left, right, top, bottom = found.padding
    even = left == right and top == bottom
    args = {
        "in_channels": found.kernel.shape[1] * found.groups,
        "out_channels": found.kernel.shape[0],
        "kernel_size": list(found.kernel.shape[2:]),
        "stride": list(found.stride),
        "padding": [top, left] if even else [0, 0],
        "dilation": list(found.dilation),
        "groups": found.groups,
        "padding_mode": found.padding_mode if even else "zeros",
        "bias": biased,
    }
    layer = {"type": "Conv2d", "args": args}
    if even:
        return layer
    pad = {"type": _PADDINGS[found.padding_mode], "args": {"padding": list(found.padding)}}
    return {"type": "Sequential", "children": [pad, layer]}


_PADDINGS = {
    "zeros": "ZeroPad2d", "reflect": "ReflectionPad2d", "replicate": "ReplicationPad2d", "circular": "CircularPad2d",
}  # fmt: skip


def _words(found: LinearMap) -> str:
    if found.kernel.dim() == 2:
        return "a linear layer"
    left, right, top, bottom = found.padding
    if left == right and top == bottom:
        return "a convolution"
    return f"a convolution behind a padding of {left} left, {right} right, {top} above and {bottom} below"


def _grouped(told: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    groups: dict[str, list[str]] = {}
    for name, text in told.items():
        groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield ", ".join(name or "the network" for name in names[:_NAMED]) + more, text


_NAMED = 4


def _same_answers(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with _in_evaluation(one), _in_evaluation(other), torch.no_grad():
        wanted = one(images.clone())
        try:
            found = other(images.clone())
        except RuntimeError:  # a size of one image is written into what was recorded
            return False
    difference = float((wanted - found).abs().max())
    return difference <= _TOLERANCE * max(1.0, float(wanted.abs().max()))


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
