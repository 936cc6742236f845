"""One pass through a network: the labels beside its tensors, and which layer runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.stages.prune.channels import PER_CHANNEL, WHOLE, OwnChannels, channel_dim, name_part
from edgewise.stages.prune.labels import Notes, every_dim_but
from edgewise.stages.prune.own_tensors import Owned, OwnTensors


class Pass:
    """What is known of the tensors of a pass so far. A shadow holds the labels of a tensor's elements."""

    def __init__(self, model: nn.Module) -> None:
        self.notes = Notes()
        self.modules = dict(model.named_modules())
        self.stack = [""]
        """Names of the modules that run, the innermost last."""
        self._shadows: dict[int, Tensor] = {}
        self._owned: dict[int, Owned] = {}
        self._fed: set[int] = set()
        self._alive: list[Any] = []  # so that ids stay theirs
        self._tensors = OwnTensors(self.modules)
        self.notes.shared = self._tensors.shared()

    def has_shadow(self, tensor: Tensor) -> bool:
        """Whether labels were ever kept for it."""
        return id(tensor) in self._shadows

    def shadow(self, tensor: Tensor) -> Tensor:
        """The labels of ``tensor``, float64 of its shape."""
        if id(tensor) not in self._shadows:
            self.keep(tensor, torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device))
        return self._shadows[id(tensor)]

    def keep(self, tensor: Tensor, labels: Tensor) -> None:
        """``labels``, float64 of its shape, are those of ``tensor``."""
        self._alive.append(tensor)
        self._shadows[id(tensor)] = labels

    def labelled(self, tensor: object) -> bool:
        """Whether some element of it is a layer's channel."""
        return isinstance(tensor, Tensor) and id(tensor) in self._shadows and bool(self._shadows[id(tensor)].any())

    def owner(self, tensor: object) -> Owned | None:
        """Which parameter or buffer it is, or was computed from; None for what depends on the images."""
        if not isinstance(tensor, Tensor) or self.is_fed(tensor):
            return None
        return self._owned.get(id(tensor)) or self._tensors.owner(tensor, self.stack[-1])

    def feed(self, tensor: object) -> None:
        """It depends on the images."""
        self._alive.append(tensor)
        self._fed.add(id(tensor))

    def is_fed(self, tensor: object) -> bool:
        """Whether it depends on the images."""
        return id(tensor) in self._fed

    def own(self, tensor: object, owner: Owned) -> None:
        """It was computed from ``owner`` alone."""
        if isinstance(tensor, Tensor) and id(tensor) not in self._shadows:
            self._alive.append(tensor)
            self._owned[id(tensor)] = owner

    @property
    def here(self) -> str:
        """Where the pass is, for people."""
        return self.stack[-1] or "the network's own forward"

    def running(self, kinds: tuple[type[nn.Module], ...]) -> str | None:
        """The innermost running module, if it is of these kinds."""
        name = self.stack[-1]
        return name if isinstance(self.modules.get(name), kinds) else None

    def made(self, name: str, module: nn.Module, output: Tensor, channels: int, dim: int = 1) -> Tensor:
        """``output`` holds new channels along ``dim``; their labels [channels]."""
        fresh = self.notes.fresh(channels, output)
        self.notes.touch(name, module, "out", fresh)
        self.keep(output, fresh.view(-1, *[1] * (output.dim() - dim - 1)).expand(output.shape).clone())
        return fresh

    def layer_of(self, weight: object, kinds: tuple[type[nn.Module], ...]) -> str | None:
        """The layer that a tensor belongs to, or was computed from."""
        owner = self.owner(weight)
        if owner is None:
            return self.running(kinds) if weight is None else None
        if owner.itself:
            return owner.layer if isinstance(self.modules[owner.layer], kinds) else None
        holders = (layer for layer, name in owner.parts if name == "weight" and isinstance(self.modules[layer], kinds))
        return next(holders, None)

    def meet(self, owner: Owned, labels: Tensor, at: int, *, but: str = "", strict: bool = False) -> bool:
        """Channels with ``labels`` [channels] meet tensors of the network's own, which are cut with them along the dimension that
        has a value for each. False where none does, or one is shared.

        ``at``: where that dimension is looked for first, and ``strict``: alone. ``but``: a layer whose weight is cut with it anyway.
        """
        found: dict[str, nn.Module] = {}
        others = [part for part in owner.parts if part[0] != but or part[1] not in ("weight", "bias")]
        for layer, name in others:
            module = self.modules[layer]
            if isinstance(module, WHOLE) and name in PER_CHANNEL:
                found[layer] = module
            elif (dim := channel_dim(getattr(module, name), len(labels), at, strict=strict)) is not None:
                if layer in self.notes.shared:
                    return False
                found[name_part(layer, name, dim)] = OwnChannels(module, name, dim)
        for key, part in found.items():
            self.notes.touch(key, part, "out", labels)
        return bool(found) or all(getattr(self.modules[layer], name).numel() == 1 for layer, name in others)

    def meet_along(self, owner: Owned, labels: Tensor, dim: int) -> bool:
        """As ``meet``, for the channels along a dimension of ``labels``; where that fails, they have to stay."""
        places = self.notes.merge(labels, every_dim_but(dim, labels.dim()), owner.words).flatten()
        if self.meet(owner, places, dim - labels.dim()):
            return True
        self.stop_at(owner, labels)
        return False

    def stop_at(self, owner: Owned, labels: Tensor) -> None:
        """Channels meet a tensor of the network's own that cannot be cut with them."""
        self.notes.stop(labels, f"its channels meet a free parameter ({owner.words})")

    def read(self, x: Tensor, dim: int, name: str) -> Tensor:
        """The labels [channels] of what a layer reads along ``dim``."""
        return self.notes.merge(self.shadow(x), every_dim_but(dim, x.dim()), name).flatten()
