"""The weights of a network, read from a file of plain tensors and fitted strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgewise.errors import RequestError


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the tensors of a safetensors file or a weights-only checkpoint, strictly.

    A plain state dict, or one under ``state_dict`` or ``model``, with or without a ``module.`` prefix. Raises
    RequestError that lists the missing, the unexpected and the wrongly shaped keys.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in _read_weights(path).items()}
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshapen = [
        f"{k}: wanted {list(own[k].shape)}, found {list(state[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or unexpected or misshapen:
        raise RequestError(_misfit(path, missing, unexpected, misshapen))
    model.load_state_dict(own | state, strict=True)


def _misfit(path: Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    lines = [f"the weights in {path} do not fit the model:"]
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen)):
        if keys:
            shown = "\n    ".join(keys[:8]) + (f"\n    … and {len(keys) - 8} more" if len(keys) > 8 else "")
            lines.append(f"  {title} ({len(keys)}):\n    {shown}")
    lines.append("  Choose the --model these weights were trained for, or other --weights.")
    return "\n".join(lines)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise RequestError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        raise RequestError(f"{path} is not a readable weights file: {error}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise RequestError(
            f"{path} holds more than plain tensors, and code in a checkpoint is never executed here. Save it again "
            "with torch.save(model.state_dict(), ...) or safetensors."
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise RequestError(
            f"{path}: wanted a state dict (name -> tensor), plain or under 'state_dict' or 'model'; found "
            f"{type(content).__name__} with {', '.join(list(map(str, content))[:5]) if isinstance(content, dict) else '-'}"
        )
    return content
