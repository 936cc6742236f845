"""The state of a training, on disk and back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgewise.network.tensors import fill_tensors
from edgewise.store.whole import write_whole


@dataclass
class State:
    """All that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    epoch: int = 0
    """Finished epochs; where there are none, finished steps."""
    step: int = 0
    """Finished steps of the epoch after those."""
    losses: list[Tensor] = field(default_factory=list)
    """Of those steps, each a scalar."""
    loss: float = 0.0


def _plain_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def write_state(state: State, folder: Path) -> None:
    """Keep all of ``state`` in ``folder``, whole or not at all."""
    tensors = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": v for name, v in slots.items() if isinstance(v, Tensor)}
    if state.losses:
        tensors["losses"] = torch.stack(state.losses)
    fields = {"epoch": str(state.epoch), "step": str(state.step), "saved": json.dumps(time.time())}
    content = save(_plain_tensors(tensors), fields)
    write_whole(folder / "epoch.safetensors", content)


def resume_state(state: State, folder: Path) -> None:
    """Take up the state that was last kept, where there is one."""
    path = folder / "epoch.safetensors"
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state.epoch, state.step = int(file.metadata()["epoch"]), int(file.metadata().get("step", "0"))
    state.losses = list(tensors["losses"]) if "losses" in tensors else []
    fill_tensors(state.model, _tensors_under("model.", tensors))
    if state.average is not None:
        fill_tensors(state.average, _tensors_under("average.", tensors))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _tensors_under("optimizer.", tensors).items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = tensor
    state.optimizer.load_state_dict({"state": slots, "param_groups": state.optimizer.state_dict()["param_groups"]})


def _tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
