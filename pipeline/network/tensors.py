"""A network's tensors, put in by their names.

Apart from the changes of structure, which a training does not rest on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def fill_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put ``tensors`` (state-dict key -> tensor) into ``model``, strictly. Raises RuntimeError when they do not fit."""
    state = OrderedDict(tensors)
    # Without the versions that a state dict carries, torchao's observers take it for an old one and reset their
    # smallest scale (eps) to float32's epsilon.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=True)
