"""Files in LiteRT's interpreter, with its XNNPACK delegate, as an application on a CPU runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets._quiet import without_standard_error
from edgewise.targets.litert._flatbuffer import check_identifier

_KINDS = {"float32": "float", "float16": "half", "uint8": "uint8", "int8": "int8"}


class Runner:
    """Calls an interpreter, one image at a time."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        (self._input,), (self._output,) = interpreter.get_input_details(), interpreter.get_output_details()

    @property
    def takes(self) -> tuple[tuple[int | None, ...], str]:
        """As ``targets.TellsInput``."""
        kind = self._input["dtype"].__name__
        return tuple(int(side) for side in self._input["shape"]), _KINDS.get(kind, kind)

    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``."""
        results = []
        for image in images:
            self._interpreter.set_tensor(self._input["index"], image[None].contiguous().numpy())
            self._interpreter.invoke()
            results.append(torch.from_numpy(self._interpreter.get_tensor(self._output["index"])))
        return torch.cat(results)


def load(path: Path, threads: int) -> Runner:
    """The file in LiteRT's interpreter on ``threads`` threads of the CPU. Raises TargetError for a file it cannot read."""
    return Runner(open_interpreter(path, threads))


def open_interpreter(path: Path, threads: int, *, single: bool = True, apart: bool = False) -> Any:
    """The interpreter of the file at ``path``, ready to run. Raises TargetError for a file that it cannot read.

    ``single``: refuse a file that has not one input and one output. ``apart``: have the delegate take every operator as a
    piece of its own.
    """
    check_identifier(path)
    with without_standard_error():
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(
                model_path=str(path), num_threads=threads, experimental_disable_delegate_node_fusion=apart
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise TargetError(
                f"wanted a LiteRT model at {path}, found {path.stat().st_size} bytes that LiteRT refuses ({error}); export "
                "it again"
            ) from error
    ends = len(interpreter.get_input_details()), len(interpreter.get_output_details())
    if single and ends != (1, 1):
        raise TargetError(f"wanted a LiteRT model of one input and one output at {path}, found {ends[0]} and {ends[1]}")
    return interpreter


def operators_outside(path: Path) -> Counter[str]:
    """Operator -> how many of the file's the XNNPACK delegate leaves to the interpreter's own kernels."""
    interpreter = open_interpreter(path, 1, apart=True)  # so that a piece's result tells which operator it is
    nodes = interpreter._get_ops_details()
    taken = {int(index) for node in nodes if node["op_name"] == "DELEGATE" for index in node["outputs"]}
    names = (
        node["op_name"]
        for node in nodes
        if node["op_name"] != "DELEGATE" and not taken & {int(index) for index in node["outputs"]}
    )
    return Counter(names)


def name_tensors(path: Path) -> tuple[str, str]:
    """What the file calls its input and its output. Raises TargetError for a file that LiteRT cannot read."""
    interpreter = open_interpreter(path, 1)
    return str(interpreter.get_input_details()[0]["name"]), str(interpreter.get_output_details()[0]["name"])
