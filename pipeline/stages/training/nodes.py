"""Training on several machines (nodes): the first process runs the recipe, the others train along when it says so.

The same command is started on every node by torchrun or Slurm, which tell each process its rank. Everything but training
happens in the process of rank 0 alone: it reads, measures and keeps, and sends the others what to train.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError

if TYPE_CHECKING:
    from edgewise.stages.training.settings import ComputePrecision, Training

_KEPT = ("epoch.safetensors", "answers.safetensors")
"""Files of a training that was stopped, without which it cannot go on."""
_PATIENCE = timedelta(days=30)
"""Between two trainings the others wait for the first process, which prunes or judges files meanwhile."""


def count_processes() -> int:
    """How many processes were started together, this one included. Raises RequestError for a number that is none."""
    return _launcher_number(("WORLD_SIZE", "SLURM_NTASKS"), 1)


def is_follower() -> bool:
    """Whether this process only trains along."""
    return count_processes() > 1 and _launcher_number(("RANK", "SLURM_PROCID"), 0) > 0


def _launcher_number(names: Iterable[str], default: int) -> int:
    """What the first variable that is set says."""
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return default
    try:
        return int(os.environ[name])
    except ValueError:
        raise RequestError(
            f"wanted a number in the environment variable {name}, found {os.environ[name]!r}; torchrun and Slurm set it, "
            "otherwise unset it"
        ) from None


def shared_training(trainings: Iterable[Training]) -> Training | None:
    """The first of the trainings that several nodes share; None: there is none.

    Raises RequestError where they are not to be had, or differ in how many they want.
    """
    shared = [how for how in trainings if how.nodes > 1]
    if not shared:
        return None
    sizes = {(how.nodes, how.devices) for how in shared}
    if len(sizes) > 1:
        raise RequestError("every Training that several nodes share must have the same nodes and devices")
    nodes, devices = sizes.pop()
    if count_processes() != nodes * devices:
        raise RequestError(
            f"Training(nodes={nodes}, devices={devices}) wants {nodes * devices} processes started together, found "
            f"{count_processes()}; start the command on every node: torchrun --nnodes {nodes} --nproc-per-node {devices} "
            "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 -m edgewise run ..., or by srun with one task a device"
        )
    return shared[0]


def open_fabric(how: Training, device: str, precision: ComputePrecision = "32-true") -> Any:
    """Fabric over all nodes, its process group begun; waits until every process is there."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    from edgewise.stages.training.execution import make_precision

    quieten_fabric()
    strategy = DDPStrategy(timeout=_PATIENCE, process_group_backend="nccl" if device == "cuda" else "gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints at launchers and plugins, as for one node
        fabric = Fabric(
            accelerator=device,
            devices=how.devices,
            num_nodes=how.nodes,
            strategy=strategy,
            plugins=make_precision(precision, device),
        )
        fabric.launch()
    return fabric


def quieten_fabric() -> None:
    """Switch off what Fabric announces."""
    import lightning_fabric  # noqa: F401 - importing it turns its announcements on

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def lead_training(work: Any, folder: Path) -> None:
    """Have every process do ``work``, this one in ``folder``, which may hold the state of one that was stopped.

    The processes of one training trust each other: what they are sent is an object of Python's.
    """
    kept = {name: (folder / name).read_bytes() for name in _KEPT if (folder / name).is_file()}
    open_fabric(work.how, work.ctx.device)
    _broadcast((work, kept))
    work.train_on_nodes()


def follow_trainings(how: Training, device: str) -> int:
    """Train along until the first process says that all is done; returns how many trainings there were."""
    open_fabric(how, device)
    count = 0
    while (order := _broadcast(None)) is not None:
        work, kept = order
        with tempfile.TemporaryDirectory(prefix="edgewise-node-") as folder:
            for name, content in kept.items():
                (Path(folder) / name).write_bytes(content)
            work.ctx = replace(work.ctx, scratch=Path(folder))
            work.train_on_nodes()
        count += 1
    return count


def dismiss_followers(how: Training, device: str) -> None:
    """Tell the others that nothing more is to be trained."""
    open_fabric(how, device)
    _broadcast(None)


def _broadcast(item: Any) -> Any:
    """What the first process has, in every process."""
    import torch.distributed

    box = [item]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
