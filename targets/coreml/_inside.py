"""What a package computes on the way to its answer, by the reference evaluation of its own instructions.

coremltools names an operation after the program's node, with the cast to float16 at its end; quantizations it moves,
splits and numbers anew, so that those are found by what they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx

from edgewise.targets import Inside
from edgewise.targets.coreml._mil import Name, Operation, Reference, read_program

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


_ENDINGS = ("_cast_fp16", "_cast_fp32")


def inside_values(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    """Values of the package at ``path`` for ``images`` [N, ...] as it takes them, under the names of ``program``'s nodes."""
    package = read_program(path)
    reference = Reference(package)
    traces = [reference.trace(package.fed.pixels(image[None])) for image in images]
    places = _match_places(program, package.operations)
    values = {name: torch.cat([place.of(trace) for trace in traces]) for name, place in places.items()}
    return Inside(program=program, values=values, half=True)


def _match_places(program: ExportedProgram, operations: tuple[Operation, ...]) -> dict[str, _Place]:
    """Node of the program -> the package's value that is the same quantity."""
    dequantized = (node for node in program.graph.nodes if "dequantize_per_tensor" in node.name)
    readers = {node.name: source for node in dequantized if (source := _quantized_source(node))}
    scales = {readers[node.name]: float(node.args[1]) for node in program.graph.nodes if node.name in readers}
    floats = _Floats(operations, scales, readers)
    places = {name: floats.reading(source) for name, source in readers.items()}
    places |= {node.name: floats.made.get(node.name) for node in program.graph.nodes if node.name not in readers}
    return {name: place for name, place in places.items() if place is not None}


def _quantized_source(reading: fx.Node) -> str:
    """What the quantization before a dequantization reads; empty where that is not a node."""
    quantization = reading.args[0]
    source = quantization.args[0] if isinstance(quantization, fx.Node) and quantization.args else None
    return source.name if isinstance(source, fx.Node) else ""


@dataclass(frozen=True)
class _Place:
    """A value of the package, integers with the grid they stand for."""

    name: str
    scale: float = 1.0
    zero_point: float = 0.0

    def of(self, trace: Mapping[str, Tensor]) -> Tensor:
        """The numbers in one evaluation."""
        return (trace[self.name].float() - self.zero_point) * self.scale


class _Floats:
    """Which float values of a package are the program's own quantities.

    coremltools lets a quantized addition compute in other units (both dequantizations and the quantization behind it
    have their scales multiplied), so that everything between them is another quantity.
    """

    def __init__(
        self, operations: tuple[Operation, ...], scales: Mapping[str, float], readers: Mapping[str, str]
    ) -> None:
        """``scales``: program's node that is quantized -> its scale; ``readers``: a dequantization -> that node."""
        self.made: dict[str, _Place] = {}
        """Plain name -> value, of operations in their own units."""
        self._read: dict[str, _Place] = {}
        """Plain name of what is quantized -> what a reader makes of the integers, where it reads in the program's units."""
        self._written: dict[str, _Place] = {}
        """The same -> the integers, with the grid they were written on."""
        self._scales, self._readers = scales, readers
        self._quantized: dict[str, str] = {}
        self._foreign: set[str] = set()
        for operation in operations:
            self._enter(operation)

    def reading(self, source: str) -> _Place | None:
        """The place of the quantized ``source``, as it is read where that is known, else as it is written."""
        return self._read.get(source, self._written.get(source))

    def _enter(self, operation: Operation) -> None:
        if operation.type.startswith("constexpr"):
            return
        result, names = operation.results[0].name, _argument_names(operation)
        if operation.type == "quantize":
            self._quantized[result] = source = _plain_name(names[0]) if names else ""
            scale, zero = (_single_value(operation, name) for name in ("scale", "zero_point"))
            if self._fits(source, scale):
                self._written[source] = _Place(result, scale, zero)
        elif operation.type == "dequantize":
            self._reading(operation, names, result)
        elif any(name in self._foreign for name in names):
            self._foreign.add(result)
        elif operation.results[0].kind.torch.is_floating_point:
            self.made[_plain_name(result)] = _Place(result)
        elif names and names[0] in self._quantized:  # integers moved about
            self._quantized[result] = self._quantized[names[0]]

    def _reading(self, operation: Operation, names: list[str], result: str) -> None:
        source = self._quantized.get(names[0], "") if names else ""
        if source not in self._scales:  # what is quantized was given another name on the way: the reader's own tells
            source = self._readers.get(_plain_name(result), "")
        if self._fits(source, _single_value(operation, "scale")):
            self._read.setdefault(source, _Place(result))
        elif source in self._scales:
            self._foreign.add(result)

    def _fits(self, source: str, scale: float) -> bool:
        """Whether ``scale`` is the program's own, right or somewhat wrong, and not that of other units."""
        source_scale = self._scales.get(source)
        return source_scale is not None and source_scale / 2 < scale < source_scale * 2


def _single_value(operation: Operation, argument: str) -> float:
    return float(torch.as_tensor(operation.arguments.get(argument, 0.0)).float().mean())


def _argument_names(operation: Operation) -> list[str]:
    flat = [
        item for value in operation.arguments.values() for item in (value if isinstance(value, tuple) else (value,))
    ]
    return [item.of for item in flat if isinstance(item, Name)]


def _plain_name(name: str) -> str:
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name
