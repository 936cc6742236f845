"""Where every channel of a network goes: found by running the network once on labels beside its numbers.

Each output channel of each layer gets a label, and every tensor of the pass a shadow of its own shape that says which
label each of its elements carries (0: none). An operation that only moves numbers (a view, a slice, a concatenation, a
shuffle, an index) is run on the shadows as it is, so that nothing has to be known about it. Where numbers of several
labels become one (an addition, a pooling over channels) the labels are tied: such channels can only go together. What a
layer reads and makes is told as a ``Touch``. An operation after which a channel can no longer be told from the others,
or that is not known, stops the labels that reach it, with the reason.

That the channels of a group can really be removed is another matter: a size may be written into the code, an index may
point past the end. ``proof`` tries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.models._layers import PadShortcut
from edgewise.stages.prune.channels import WEIGHTED
from edgewise.stages.prune.labels import Flow, every_dim_but, pairs_of, varying_dims
from edgewise.stages.prune.layer_rules import RULES
from edgewise.stages.prune.one_pass import Pass
from edgewise.stages.prune.operations import (
    ADDITIONS,
    BY_NUMBER,
    COPIES,
    MIXES,
    MOVES,
    VIEWS,
    bind_arguments,
    is_pointwise,
    mixed_dims,
    name_of,
    only_restrides,
    pad_labels,
)
from edgewise.stages.prune.own_tensors import Owned, computed_from, same_storage


def follow_channels(model: nn.Module, example: Tensor, aided: bool = False) -> Flow:
    """Run ``model`` on ``example`` [1, C, H, W] in eval mode and follow the channels.

    ``aided``: with all that it computes in training beside the logits; the layers themselves stay in evaluation.
    """
    model.eval()
    tracker = Pass(model)
    follower = _Follower(tracker)
    with torch.no_grad(), follower.listening(), follower:
        tracker.feed(example)
        model.training = aided
        try:
            output = model(example)
        finally:
            model.training = False
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor):
            tracker.notes.stop(tracker.shadow(tensor), "its channels are the network's outputs")
    return tracker.notes.flow()


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation, and its like on the shadows."""

    def __init__(self, seen: Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen
        self._apart = 0
        self._first_slices: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, it is known which module runs."""
        with ExitStack() as hooks:
            for name, module in self._seen.modules.items():
                before = module.register_forward_pre_hook(lambda m, args, name=name: self._enter(name, m, args))
                after = module.register_forward_hook(lambda m, args, output: self._leave(m, args, output))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._seen.stack.append(name)
        if isinstance(module, PadShortcut):
            self._apart += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._seen.stack.pop()
        if isinstance(module, PadShortcut):
            self._apart -= 1
            self._seen.notes.touch(name, module, "in", self._seen.read(args[0], 1, name))
            self._seen.made(name, module, output, output.shape[1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        restrides = only_restrides(func, args, kwargs)
        result = func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(self._seen.is_fed(t) for t in tensors):
            for tensor in tree_leaves(result):
                self._seen.feed(tensor)
        if not self._apart:
            if restrides and self._seen.labelled(args[0]):
                self._seen.keep(result, self._seen.shadow(args[0]).clone())
            elif any(self._seen.labelled(t) for t in tensors):
                self._follow(func, args, kwargs, tensors, result)
            else:
                self._pass_on(func, args, kwargs, tensors, result)
        return result

    def _pass_on(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], result: Any) -> None:
        """No labels yet: layers make them; what is computed from the network's own tensors is told as theirs."""
        name = name_of(func)
        is_fed = any(self._seen.is_fed(tensor) for tensor in tensors)
        owners = [owner for tensor in tensors if (owner := self._seen.owner(tensor))]
        if owners and not is_fed:
            for tensor in tree_leaves(result):
                itself = len(owners) == 1 and owners[0].itself and same_storage(tensor, tensors)
                self._seen.own(tensor, computed_from(owners, itself))
        elif name in RULES:
            RULES[name](self._seen, bind_arguments(func, args, kwargs), result)
        elif name in MOVES and tensors:
            self._move(func, args, kwargs, result)

    def _follow(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], result: Any) -> None:
        name, arguments = name_of(func), bind_arguments(func, args, kwargs)
        if name in RULES:
            RULES[name](self._seen, arguments, result)
        elif name in MOVES:
            if name == "cat":
                self._meet_joined(tensors, arguments["dim"])
            self._move(func, args, kwargs, result)
            self._regroup(name, arguments, result)
        elif name in MIXES:
            self._mix(name, arguments, result)
        elif is_pointwise(func, name):
            self._pointwise(name, tensors, result, func._schema.is_mutable)
        else:
            for tensor in tensors:
                self._seen.notes.stop(
                    self._seen.shadow(tensor),
                    f"they pass {name.strip('_')} in {self._seen.here}, which is not understood",
                )

    def _move(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Run the operation on the shadows."""
        name = name_of(func)
        if name == "copy_":
            self._seen.shadow(args[0]).copy_(self._seen.shadow(args[1]))
        elif name in COPIES:
            self._seen.keep(result, self._seen.shadow(args[0]).clone())
        elif name in VIEWS:
            self._seen.keep(result, self._seen.shadow(args[0]).reshape(result.shape))
        elif name == "constant_pad_nd":
            self._seen.keep(result, pad_labels(self._seen.shadow(args[0]), args[1]))
        else:
            shadow = func(*_shadow_arguments(args, self._seen, name), **kwargs)
            for tensor, labels in zip(tree_leaves(result), tree_leaves(shadow), strict=True):
                self._seen.keep(tensor, labels)

    def _regroup(self, name: str, bound: Mapping[str, Any], result: Any) -> None:
        """Remember where channels are counted in groups, or told apart by numbers that a cut may upset."""
        outputs = [self._seen.shadow(tensor) for tensor in tree_leaves(result)]
        if name in BY_NUMBER or name == "stack":
            for labels in outputs:
                self._warn(name, labels, varying_dims(labels))
        if name in VIEWS:
            self._counted(name, outputs[0])
        elif name == "stack":
            self._alike([outputs[0], outputs[0].narrow(bound["dim"], 0, 1)])
        elif name in ("channel_shuffle", "native_channel_shuffle"):
            labels = self._seen.shadow(bound["self"])
            channels = labels.reshape(len(labels), bound["groups"], -1, *labels.shape[2:])
            self._alike([channels, channels.narrow(1, 0, 1)])
        elif name.startswith(("split", "unbind")):
            self._alike([piece for piece in outputs if piece.shape == outputs[0].shape])
        elif name in ("slice", "narrow"):
            first = self._first_slices.setdefault((id(bound["self"]), bound["dim"]), outputs[0])
            self._alike([piece for piece in (first, outputs[0]) if piece.shape == first.shape])

    def _warn(self, name: str, labels: Tensor, dims: Sequence[int]) -> None:
        if dims:
            self._seen.notes.hint(labels, f"{name.strip('_')} in {self._seen.here}")

    def _alike(self, pieces: Sequence[Tensor]) -> None:
        """Of channels at one place in several pieces all may have to go, so that the pieces stay of one size."""
        self._seen.notes.places.extend(pairs_of(pieces[0], piece) for piece in pieces[1:])

    def _counted(self, name: str, labels: Tensor) -> None:
        """A view along two dimensions of which channels differ: groups, and places in them."""
        dims = varying_dims(labels)
        if len(dims) < 2:
            return
        self._warn(name, labels, dims)
        self._seen.notes.groups.append(pairs_of(labels, labels.narrow(dims[-1], 0, 1)))
        for dim in dims[:-1]:
            self._alike([labels, labels.narrow(dim, 0, 1)])

    def _pointwise(self, name: str, tensors: Sequence[Tensor], result: Any, mutable: bool) -> None:
        notes = self._seen.notes
        with_labels = [t for t in tensors if self._seen.labelled(t)]
        joint = self._seen.shadow(with_labels[0])
        for tensor in with_labels[1:]:
            other = self._seen.shadow(tensor)
            pairs = pairs_of(joint, other)
            notes.ties.append(pairs)
            if name in ADDITIONS:
                notes.added.update(pairs.flatten().tolist())
            joint = torch.where(joint != 0, joint, other)
        for tensor in tensors:
            owner = None if self._seen.labelled(tensor) else self._seen.owner(tensor)
            if owner is not None and self._is_free(owner):
                self._meet(joint, tensor, owner)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            if mutable and self._seen.has_shadow(tensor):
                self._seen.shadow(tensor).copy_(joint)
            else:
                self._seen.keep(tensor, joint.expand(tensor.shape).clone())

    def _meet_joined(self, tensors: Sequence[Tensor], dim: int) -> None:
        """Tensors of the network's own that stand beside channels, as a class token beside others, carry those channels, too."""
        labels = next(self._seen.shadow(tensor) for tensor in tensors if self._seen.labelled(tensor))
        for tensor in tensors:
            owner = None if self._seen.labelled(tensor) else self._seen.owner(tensor)
            dims = [place for place in varying_dims(labels) if place != dim % labels.dim()]
            if owner is None or len(dims) != 1 or tensor.dim() != labels.dim():
                continue
            if self._seen.meet_along(owner, labels, dims[0]):
                places = labels.amax(every_dim_but(dims[0], labels.dim()), keepdim=True)
                self._seen.keep(tensor, places.expand(tensor.shape).clone())

    def _meet(self, labels: Tensor, tensor: Tensor, owner: Owned) -> None:
        """A tensor of the network's own meets channels: it goes with them where it has one value for each; else they stay."""
        dims = _crossed_dims(labels, tensor)
        if len(dims) == 1:
            self._seen.meet_along(owner, labels, dims[0])
        elif dims:
            self._seen.stop_at(owner, labels)

    def _is_free(self, owner: Owned) -> bool:
        """Whether a tensor of the network is not cut with the layer that holds it."""
        module = self._seen.modules[owner.layer]
        return not (isinstance(module, WEIGHTED) and owner.tensor in ("weight", "bias"))

    def _mix(self, name: str, bound: Mapping[str, Any], result: Any) -> None:
        """Operations that make one number of several: along dimensions, or over windows of an image."""
        x = bound["self"] if "self" in bound else bound["input"]
        labels, words = self._seen.shadow(x), f"{name.strip('_')} in {self._seen.here}"
        dims = mixed_dims(name, bound, x.dim())
        remainder = self._seen.notes.merge(labels, dims, words)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                result_labels = remainder if tensor.dim() == x.dim() else remainder.squeeze(tuple(dims))
                self._seen.keep(tensor, result_labels.expand(tensor.shape).clone())


def _shadow_arguments(args: Any, seen: Pass, name: str) -> list[Any]:
    """Arguments with shadows instead of tensors; indices stay what they are."""
    indices = name in ("index", "index_select", "gather")

    def swap(value: Any, first: bool) -> Any:
        if isinstance(value, Tensor):
            return seen.shadow(value) if first or not indices else value
        if isinstance(value, (list, tuple)):
            return type(value)(swap(item, first) for item in value)
        return value

    return [swap(value, number == 0) for number, value in enumerate(args)]


def _crossed_dims(labels: Tensor, tensor: Tensor) -> list[int]:
    """Dimensions along which the labels differ and ``tensor`` has a value for each."""
    sizes = (*[1] * (labels.dim() - tensor.dim()), *tensor.shape)
    return [dim for dim in varying_dims(labels) if sizes[dim - labels.dim()] > 1]
