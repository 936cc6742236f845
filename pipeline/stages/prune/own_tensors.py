"""Which tensors of a pass are a network's own: its parameters and buffers, and views of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Owned:
    """A tensor of the network: a parameter or a buffer, or something computed from one."""

    layer: str
    tensor: str
    itself: bool
    others: tuple[tuple[str, str], ...] = ()
    """Layer and name of what else it was computed from."""

    @property
    def words(self) -> str:
        return f"{self.layer}.{self.tensor}" if self.layer else self.tensor

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Layer and name of all that it was computed from."""
        return ((self.layer, self.tensor), *self.others)


class OwnTensors:
    """Where the network's own tensors lie in memory."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._owners: dict[int, list[Owned]] = {}
        self._ends: dict[int, int] = {}
        for layer, module in modules.items():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.numel():
                    self._owners.setdefault(tensor.data_ptr(), []).append(Owned(layer, name, True))
                    self._ends[tensor.data_ptr()] = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        self._starts = sorted(self._owners)

    def owner(self, tensor: Tensor, running: str) -> Owned | None:
        """Whose ``tensor`` is; of several that share it the one that is running."""
        start = self._starts[bisect_right(self._starts, tensor.data_ptr()) - 1] if self._starts else 0
        if not start <= tensor.data_ptr() < self._ends.get(start, 0):
            return None
        owners = self._owners[start]
        return next((owner for owner in owners if owner.layer == running), owners[0])

    def shared(self) -> dict[str, str]:
        """Layer -> another whose weights it shares."""
        groups = [[o.layer for o in owners] for owners in self._owners.values() if len(owners) > 1]
        return {layer: next((o for o in group if o != layer), layer) for group in groups for layer in group}


def computed_from(owners: Sequence[Owned], itself: bool) -> Owned:
    """Whose a tensor is that was computed from those of ``owners``."""
    first = owners[0]
    others = dict.fromkeys(part for owner in owners for part in owner.parts if part != (first.layer, first.tensor))
    return Owned(first.layer, first.tensor, itself, tuple(others))


def same_storage(tensor: object, tensors: Sequence[Tensor]) -> bool:
    """Whether ``tensor`` is a view of one of those."""
    return isinstance(tensor, Tensor) and any(
        tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in tensors
    )
