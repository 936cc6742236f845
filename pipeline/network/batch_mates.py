"""Whether a network's answer to an image depends on the image alone: not on the others in its batch, not on chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.errors import RequestError
from edgewise.network.where import current_line, line_clause

_TOLERANCE = 1e-3
_BATCH = 3


def takes_batches(model: nn.Module, images: Tensor) -> bool:
    """Whether ``model``, in evaluation, answers a batch of images [N, C, H, W] as it answers them one by one.

    False: a batch of one is written into its code. Raises RequestError, naming the layer and the line, where the answers
    depend on the other images of the batch, or on chance.
    """
    first = images[:1]
    alone = _watch_pass(model, first)
    # Twice: of few answers a dropout may draw the same once more.
    place = _difference(alone, _watch_pass(model, first)) or _difference(alone, _watch_pass(model, first))
    if place is not None:
        raise RequestError(
            f"{place} draws random numbers in evaluation, so that the same image is answered differently each time; "
            "use nn.Dropout, or dropout(..., training=self.training), which rest there"
        )
    batch, other = _mates(images)
    try:
        one, two = _watch_pass(model, batch), _watch_pass(model, other)
    except Exception:
        return False
    if one.rows != _BATCH:
        return False
    place = _difference(one, two) or _difference(alone, one)
    if place is not None and not _answer_alike(alone, one, two):
        raise RequestError(
            f"{place} makes the answer to an image depend on the other images of its batch, in evaluation too (a batch "
            "norm without running statistics does); on a device there are none. Keep running statistics "
            "(track_running_stats=True), or normalise each image by itself (nn.GroupNorm)"
        )
    return True


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One operator on a batch, as it treated the first image."""

    place: str
    gave: Tensor
    """float64 [3]: sum, sum of absolute values and sum of weighted values, over the first image."""
    took: Tensor | None
    """The same of what it was given; None: of no batch."""


@dataclass(frozen=True, kw_only=True)
class _Pass:
    steps: Sequence[_Step]
    answers: Tensor | None
    """What the network answered; None: no tensor."""

    @property
    def rows(self) -> int:
        """Number of answers; 0: no tensor."""
        return 0 if self.answers is None else len(self.answers)


def _mates(images: Tensor) -> tuple[Tensor, Tensor]:
    """The first image with two others, and with two quite different ones."""
    first = images[:1]
    mates = images[torch.arange(1, _BATCH) % len(images)]
    return torch.cat([first, mates]), torch.cat([first, 0.5 - 2 * mates.flip(-1)])


def _watch_pass(model: nn.Module, images: Tensor) -> _Pass:
    watcher = _Watcher(len(images))
    with torch.inference_mode(), _names_kept(model, watcher.enter, watcher.leave), watcher:
        result = model(images.clone())
    return _Pass(steps=watcher.steps, answers=result if isinstance(result, Tensor) and result.dim() else None)


def _answer_alike(alone: _Pass, *batches: _Pass) -> bool:
    """Whether the first image is answered the same in all passes, by a network that does tell images apart.

    A tensor's first dimension may be as long as the batch and be none: queries, keys and values are three. What is made
    of the image in the end is the same then. An untrained classifier of zeros answers everything the same.
    """
    assert alone.answers is not None
    first, scale = alone.answers[0], alone.answers.abs().amax()
    for batch in batches:
        assert batch.answers is not None
        apart = (batch.answers[0] - first).abs().amax()
        tells_apart = (batch.answers - batch.answers[:1]).abs().amax() > _TOLERANCE * scale
        if not bool(apart <= 0.1 * _TOLERANCE * scale and tells_apart):
            return False
    return True


def _difference(one: _Pass, two: _Pass) -> str | None:
    """Where the first image is first treated differently, though what came in was the same; None: nowhere."""
    if len(one.steps) != len(two.steps):
        return None
    for a, b in zip(one.steps, two.steps, strict=True):
        if not _is_close(a.gave, b.gave) and (a.took is None or b.took is None or _is_close(a.took, b.took)):
            return a.place
    return None


def _is_close(one: Tensor, two: Tensor) -> bool:
    near = (one - two).abs() <= _TOLERANCE * (1e-3 + one[1].abs())
    return bool((near | (one == two) | (one.isnan() & two.isnan())).all())  # infinities have no difference


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its subclass hook unannotated
    """Keeps of every operator what it made of the first image, and where in the network that was."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self._batch = batch
        self._inside: list[str] = []

    def enter(self, name: str) -> None:
        """A module is being called."""
        self._inside.append(name)

    def leave(self) -> None:
        """It is left."""
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first_input = _first_image_part(tree_leaves((args, kwargs)), self._batch)
        took = None if first_input is None else _channel_sums(first_input)  # before: it may write into what it is given
        result = func(*args, **(kwargs or {}))
        gave = _first_image_part(tree_leaves(result), self._batch)
        if gave is not None:
            self.steps.append(_Step(place=self._place(func), gave=_channel_sums(gave), took=took))
        return result

    def _place(self, func: Any) -> str:
        layer = self._inside[-1] if self._inside else ""
        operator = func._schema.name.split("::")[-1].rstrip("_")
        return f"{layer or 'the network itself'} ({operator}{line_clause(current_line())})"


def _first_image_part(values: Sequence[Any], batch: int) -> Tensor | None:
    """The first image's part of the first floating tensor that holds a batch."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and len(value) == batch:
            return value[0]
    return None


def _channel_sums(values: Tensor) -> Tensor:
    flat = values.double().reshape(-1)
    ramp = torch.linspace(0.5, 1.5, flat.numel(), dtype=torch.float64) if flat.numel() > 1 else torch.ones(1)
    return torch.stack([flat.sum(), flat.abs().sum(), (flat * ramp).sum()])


@contextmanager
def _names_kept(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> Iterator[None]:
    hooks = []
    for name, module in model.named_modules():
        sentence = (
            f"layer {name!r}, a {type(module).__name__}" if name else f"the network itself, a {type(module).__name__}"
        )
        hooks.append(module.register_forward_pre_hook(lambda *_, told=sentence: enter(told)))
        hooks.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
