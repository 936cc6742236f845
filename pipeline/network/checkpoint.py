"""A network on disk: its architecture's name, the surgery that changed it, and plain tensors.

``model.json`` holds the first two, ``model.safetensors`` the third. Loading builds the architecture anew, repeats the
surgery and fills in the tensors strictly; no code and no pickle is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from edgewise.errors import EdgewiseError, RequestError, StoreError
from edgewise.models import ModelError
from edgewise.network import answers_within, architecture, captured, first_call, surgery
from edgewise.network.architecture import Base
from edgewise.network.tensors import fill_tensors
from edgewise.store.json_values import decode
from edgewise.store.reading import read_json
from edgewise.targets import Sizes

_OPERATIONS: dict[str, type[Any]] = {
    "resize": surgery.Resize,
    "replace": surgery.Replace,
    "prepare": captured.Prepare,
    "materialise": first_call.Materialise,
    "copy_input": first_call.CopyInput,
    "take_answer": answers_within.TakeAnswer,
}


@dataclass(frozen=True)
class _Description:
    """``model.json``."""

    base: Base
    surgery: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Checkpoint:
    """A network and the architecture it comes from."""

    base: Base
    model: nn.Module


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write ``model.json`` and ``model.safetensors`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"base": dataclasses.asdict(checkpoint.base), "surgery": _history_json(checkpoint.model)}
    save_file(tensors(checkpoint.model), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def load(folder: Path, batch: int | None = None, sizes: Sizes | None = None) -> Checkpoint:
    """Rebuild the network written by ``save``, in evaluation mode.

    ``batch`` captures a quantized graph anew at that fixed batch size, ``sizes`` for those image sizes. Raises StoreError
    when the files do not belong together.
    """
    base, operations, state = _read_files(folder)
    try:
        model = _rebuild_network(base, operations, batch, None)
        fill_tensors(model, state)
        if sizes is not None and sizes.kind != "fixed" and isinstance(model, GraphModule):
            network = _rebuild_network(base, operations, batch, sizes)
            assert isinstance(network, GraphModule)
            model = captured.carry_over(model, network)
    except (EdgewiseError, ModelError):
        raise
    except RuntimeError as error:
        raise StoreError(f"the tensors in {folder} do not fit the network rebuilt from its surgery: {error}") from error
    except Exception as error:  # surgery that somebody else wrote can go wrong in any way
        raise StoreError(f"the surgery in {folder} cannot be repeated: {type(error).__name__}: {error}") from error
    return Checkpoint(base, model)


def _read_files(folder: Path) -> tuple[Base, list[Any], dict[str, torch.Tensor]]:
    """What the two files hold. Raises StoreError for files that are missing, damaged or of another kind."""
    try:
        description = decode(_Description, read_json(folder / "model.json"), "model.json")
        operations = [_decode_operation(dict(fields)) for fields in description.surgery]
        tensors_file = folder / "model.safetensors"
        if not tensors_file.is_file():
            raise ValueError("there is no regular file model.safetensors")
        return description.base, operations, load_file(tensors_file)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise StoreError(
            f"{folder} holds no network that can be read: {error}; keep the run's folder as it was written"
        ) from error


def _rebuild_network(base: Base, operations: Sequence[Any], batch: int | None, sizes: Sizes | None) -> nn.Module:
    """The network after its surgery, with tensors of its own."""
    model = architecture.build(base).eval()
    for operation in operations:
        if isinstance(operation, captured.Prepare):
            model = operation.capture(model, batch, sizes)
        else:
            model = surgery.apply_in_place(model, operation)  # nobody else holds it, and lazy layers take no copy
    return model


def allow_model(folder: Path, model: str | None) -> None:
    """Refuse a checkpoint that names a user's file of code, unless ``model`` is that very reference.

    Raises RequestError; also for a folder that holds no checkpoint.
    """
    try:
        model_name = str(read_json(folder / "model.json")["base"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{folder} holds no checkpoint that can be read: {error}") from error
    if ".py:" in model_name and model_name != model:
        raise RequestError(
            f"the checkpoint {folder} was made with the network {model_name}, whose code would be run; if you trust it, say so "
            f"with --model {model_name}"
        )


def digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over the architecture with its code, the surgery, and every tensor's name, type, shape and bytes."""
    description = {
        "base": dataclasses.asdict(checkpoint.base),
        "code": architecture.code_digest(checkpoint.base.model),
        "surgery": _history_json(checkpoint.model),
    }
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors(checkpoint.model).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as contiguous tensors in main memory that share no storage."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def _history_json(model: nn.Module) -> list[dict[str, Any]]:
    names = {kind: name for name, kind in _OPERATIONS.items()}
    return [{"op": names[type(op)]} | dataclasses.asdict(op) for op in surgery.history(model)]


def _decode_operation(fields: dict[str, Any]) -> Any:
    arguments = {key: value for key, value in fields.items() if key != "op"}
    if fields.get("op") not in _OPERATIONS:
        raise StoreError(f"unknown surgery {fields.get('op')!r}; known: {', '.join(_OPERATIONS)}")
    return _OPERATIONS[fields["op"]](**arguments)
