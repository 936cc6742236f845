"""ONNX Runtime: an .onnx file for CPUs (x86, Arm)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgewise.targets import COMMON_OPERATORS, EVERY_SIZE, GATES, PRODUCTS, Grid, Inside, Target
from edgewise.targets._quantizer import int8_quantizer
from edgewise.targets.onnx._profile import profile
from edgewise.targets.onnx._session import open_session

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
from edgewise.targets.onnx._lowering import OPSETS, PRECISIONS, export


class _Runner:
    """Calls a session, one image at a time where the file's batch is 1."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0]

    @property
    def takes(self) -> tuple[tuple[int | None, ...], str]:
        """As ``targets.TellsInput``."""
        sides = tuple(side if isinstance(side, int) else None for side in self._input.shape)
        return sides, str(self._input.type).removeprefix("tensor(").removesuffix(")").replace("float16", "half")

    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``."""
        batch = self._input.shape[0]
        parts = torch.split(images, batch if isinstance(batch, int) else max(len(images), 1))
        results = [self._session.run(None, {self._input.name: part.contiguous().numpy()})[0] for part in parts]
        return torch.cat([torch.from_numpy(result) for result in results])


def load(path: Path, threads: int) -> _Runner:
    """The file in ONNX Runtime on ``threads`` threads of the CPU. Raises TargetError for a file it cannot read."""
    return _Runner(open_session(path, threads))


def name_tensors(path: Path) -> tuple[str, str]:
    """What the file calls its input and its output. Raises TargetError for a file that ONNX Runtime cannot read."""
    runner = open_session(path, 1)
    return str(runner.get_inputs()[0].name), str(runner.get_outputs()[0].name)


def _inside(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    from edgewise.targets.onnx._inside import inside_values
    from edgewise.targets.onnx._lowering import prepare_program

    return inside_values(path, prepare_program(program), images)


TARGET = Target(
    name="onnx",
    summary="ONNX Runtime on a CPU (x86, Arm)",
    suffix=".onnx",
    extra="onnx",
    needs=("onnx", "onnxscript", "onnxruntime"),
    # Without VNNI, x86 adds two u8×s8 products in 16 bits, saturating: 255·127·2 does not fit, 255·63·2 does.
    grids=(Grid(weight_bits=7, operators=COMMON_OPERATORS | GATES | PRODUCTS),),
    quantizer=int8_quantizer,
    export=export,
    load=load,
    profile=profile,
    tensors=name_tensors,
    precisions=PRECISIONS,
    one_size=frozenset({"float16", "int8-weights"}),
    versions=OPSETS,
    inside=_inside,
    # ONNX has no list of sizes: a file for several leaves height and width open.
    sizes=EVERY_SIZE,
    feeds=frozenset({"normalised", "channels-last", "bytes"}),
)
