"""What the user's own code makes of a request: run again before a finished run may answer for it.

The text of his files does not tell all: a file of settings, a variable, the time of day may go into what they make.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from edgewise.network import architecture
from edgewise.network.architecture import Base
from edgewise.recipe import Recipe


def describe_made(recipe: Recipe, classes: int, channels: int) -> dict[str, Any]:
    """The recipe's fields and, of a network of the user's, what it states and a digest of its layers and fresh tensors."""
    made: dict[str, Any] = {"recipe": recipe.describe(), "classes": classes, "channels": channels}
    if architecture.is_foreign(recipe.model):
        spec = architecture.spec_of(recipe.model)
        torch.manual_seed(recipe.seed)
        made["states"] = repr([spec.mean, spec.std, spec.input_shape, spec.classes, spec.classifier, spec.resize])
        made["network"] = digest_network(architecture.build(Base(recipe.model, classes, channels)))
    return made


def digest_network(network: nn.Module) -> str:
    """SHA-256 of a network as it prints itself and of its tensors; of one whose shapes an image gives, without those."""
    digest = hashlib.sha256(architecture.print_layers(network))
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        if not torch.nn.parameter.is_lazy(tensor):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
