"""Writing a network's file for a target, in a worker process that rebuilds the network from its checkpoint.

A fresh process per worker proves on every run that the checkpoint is whole, keeps a backend's crash away from the run,
and lets two targets be lowered at once.
"""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import EdgewiseError, LoweringError
from edgewise.targets import USUAL, Artifact, Packaging, Sizes

if TYPE_CHECKING:
    from edgewise.images.wrapper import Wrapper


RECORD = "artifact.json"


@dataclass(frozen=True)
class Order:
    """What to write where."""

    checkpoint: Path
    target: str
    folder: Path
    """Receives the file and ``artifact.json``."""
    stem: str
    """The file's name without its suffix."""
    packaging: Packaging = USUAL
    baking: Wrapper | None = None
    """What goes into the file around the network; None: nothing."""


def submit_order(pool: Executor, order: Order) -> Future[None]:
    """Start writing; ``result()`` raises LoweringError, with the phase and the cause, when it could not be done."""
    return pool.submit(lower_checkpoint, order)


def lower_checkpoint(order: Order) -> None:
    """Rebuild the checkpoint's network, capture it at batch 1, write the target's file and describe it."""
    phase = "rebuilding the network"
    try:
        program = capture_program(order.checkpoint, order.packaging.sizes, order.baking)
        phase = f"writing the {order.target} file"
        from edgewise import targets

        target = targets.get(order.target)
        artifact = target.export(program, order.folder / f"{order.stem}{target.suffix}", order.packaging)
    except EdgewiseError as error:
        raise LoweringError(f"{order.target}: {phase} failed: {error}") from error
    except Exception as error:
        message = f"{order.target}: {phase} failed: {type(error).__name__}: {str(error)[:2000]}"
        raise LoweringError(message) from error
    _write_description(artifact, order.folder)


def capture_program(folder: Path, sizes: Sizes | None = None, baking: Wrapper | None = None) -> Any:
    """The ExportedProgram at batch 1 of the network in the checkpoint ``folder``, as every target is given it.

    ``sizes``: left open for these; ``baking``: with this around the network.
    """
    import torch

    from edgewise import library_noise
    from edgewise.images.sizes import open_sides
    from edgewise.images.wrapper import NOTHING
    from edgewise.network import captured as quantize
    from edgewise.network import checkpoint as network_checkpoint
    from edgewise.network.regions import export_plain

    baking = baking or NOTHING
    model = network_checkpoint.load(folder, batch=1, sizes=sizes).model
    shape = json.loads((folder / "input.json").read_text(encoding="utf-8"))["shape"]
    if isinstance(model, torch.fx.GraphModule):
        model = quantize.convert(model)
    open_ = open_sides(sizes, baking.sides)
    with library_noise.quiet_capture():
        return export_plain(baking.around(model), baking.example(shape), (open_,) if open_ else None)


def _write_description(artifact: Artifact, folder: Path) -> None:
    fields = dataclasses.asdict(artifact) | {"path": artifact.path.relative_to(folder).as_posix()}
    fields["facts"] = dict(artifact.facts)
    (folder / RECORD).write_text(json.dumps(fields, indent=1), encoding="utf-8")


def read_artifact(folder: Path) -> Artifact:
    """The artifact that ``lower`` left in ``folder``."""
    fields = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    path = folder / fields.pop("path")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LoweringError(f"{folder / RECORD} names a file outside its folder: {path}")
    fields["undelegated"] = tuple(fields["undelegated"])
    return Artifact(path=path, **fields)


def await_outcome(future: Future[None], target: str) -> LoweringError | None:
    """Wait for a file; the error if it could not be written."""
    try:
        future.result()
    except LoweringError as error:
        return error
    except BrokenProcessPool as error:
        failure = LoweringError(
            f"{target}: the process that was writing the file died (out of memory, or a backend's crash)"
        )
        failure.__cause__ = error
        return failure
    return None
