"""A written package's own instructions, evaluated in torch.

The reference's arithmetic. The program's types are followed to the letter: an operator reads its operands as they were
rounded, computes in float32, and its result is rounded to the type the file declares. A float16 result is thus rounded
once per operator, to nearest, and overflows to infinity where float16 does; sums inside one operator (a convolution, a
mean) are kept in float32, as hardware with wide accumulators keeps them. float16 values are carried in float32 tensors.
What stands between dequantize and quantize operators and can be computed in integers is taken as one int8 kernel, which
rounds once, at its end (``integer_values``). An Apple device may add in another order, fuse other operators, or compute
such a kernel in float16, and differs by such roundings.

A file takes one image. ``torch.vmap`` evaluates many at once without changing what each instruction means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets.coreml import _arithmetic, _arrangement, _compression, _input, _layers, _package
from edgewise.targets.coreml._coremltools import load_coremltools
from edgewise.targets.coreml._input import Fed
from edgewise.targets.coreml._weights import Kind, Reader, Value, kind_of, shape_of

_BATCH = 100
"""Images evaluated at once: enough to keep the kernels busy, few enough to keep the values in memory near."""

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **_arithmetic.OPERATORS,
    **_arrangement.OPERATORS,
    **_compression.OPERATORS,
    **_layers.OPERATORS,
}
"""MIL operator type -> its evaluation. Arguments are MIL's, by name."""

# Their results are values that went in, or limits written in the program's own type: nothing to round.
_EXACT = frozenset(_arrangement.OPERATORS) | {
    "relu",
    "relu6",
    "clip",
    "max_pool",
    "maximum",
    "minimum",
    "select",
    "abs",
}


class Everything:
    """Holds every name: for an evaluation that rounds nothing, to tell a wrong file from the noise of float16."""

    def __contains__(self, name: object) -> bool:
        return True


class UnknownOperatorError(TargetError):
    """The file is well formed and uses operators that the reference does not know; ``types`` counts each."""

    def __init__(self, path: Path, types: Mapping[str, int]) -> None:
        self.types = dict(types)
        listing = ", ".join(f"{name} ({count})" for name, count in sorted(types.items()))
        super().__init__(f"{path}: the reference evaluation does not know these MIL operators: {listing}")


@dataclass(frozen=True)
class Result:
    """A value an operator declares."""

    name: str
    kind: Kind
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Operation:
    """One instruction: arguments are constants, or names of earlier values."""

    type: str
    arguments: Mapping[str, Value | Name | tuple[Value | Name, ...]]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Name:
    """A reference to an earlier value."""

    of: str


@dataclass(frozen=True)
class Program:
    """The ``main`` function of a package, constants read."""

    path: Path
    input: Result
    output: str
    operations: tuple[Operation, ...]
    specification_version: int
    fed: Fed
    """What the input is called and takes outside."""


def read_program(path: Path) -> Program:
    """Parse the package at ``path``. Raises TargetError for one that is not whole or not an ML Program of one image."""
    package = _package.read(path)
    model = load_coremltools("coremltools.proto.Model_pb2").Model()
    try:
        model.ParseFromString(package.model.read_bytes())
    except load_coremltools("google.protobuf.message").DecodeError as error:
        raise TargetError(f"{package.model}: wanted a Core ML specification, found {error}") from error
    if model.WhichOneof("Type") != "mlProgram" or "main" not in model.mlProgram.functions:
        raise TargetError(f"{path}: wanted an ML Program with a main function, found {model.WhichOneof('Type')}")
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    messages, outputs = _drop_classifier(list(block.operations), list(block.outputs))
    if len(function.inputs) != 1 or len(outputs) != 1:
        raise TargetError(f"{path}: wanted one input and one output, found {len(function.inputs)}, {len(outputs)}")
    return Program(
        path,
        _read_result(function.inputs[0]),
        outputs[0],
        tuple(_read_operations(messages, Reader(package))),
        model.specificationVersion,
        _input.read_input(model.description.input[0]),
    )


def _drop_classifier(messages: list[Any], outputs: list[str]) -> tuple[list[Any], list[str]]:
    """Without a classifier's last operator, which gives each probability its class's name and changes no number."""
    if messages and messages[-1].type == "classify":
        return messages[:-1], [messages[-1].inputs["probabilities"].arguments[0].name]
    return messages, outputs


def _read_result(message: Any) -> Result:
    if message.type.WhichOneof("type") != "tensorType":
        raise TargetError(f"value {message.name!r}: wanted a tensor, found {message.type.WhichOneof('type')}")
    tensor_type = message.type.tensorType
    return Result(message.name, kind_of(tensor_type), shape_of(tensor_type))


def _read_operations(messages: Iterable[Any], reader: Reader) -> Iterable[Operation]:
    """Constants are read into the arguments that use them; every other operation is kept in order."""
    constants: dict[str, Value] = {}

    def bound(binding: Any) -> Value | Name:
        if binding.WhichOneof("binding") == "value":
            return reader.value(binding.value)
        return constants[binding.name] if binding.name in constants else Name(binding.name)

    for message in messages:
        attributes = {key: value for key, value in message.attributes.items() if key != "name"}
        if message.type == "const":
            constants[message.outputs[0].name] = reader.value(attributes["val"])
            continue
        arguments: dict[str, Value | Name | tuple[Value | Name, ...]] = {
            key: reader.value(value) for key, value in attributes.items()
        }
        for key, argument in message.inputs.items():
            values = tuple(bound(binding) for binding in argument.arguments)
            arguments[key] = values if len(values) > 1 or key == "values" else values[0]
        yield Operation(message.type, arguments, tuple(_read_result(output) for output in message.outputs))


def _names(operation: Operation) -> set[str]:
    flat = [
        item for value in operation.arguments.values() for item in (value if isinstance(value, tuple) else (value,))
    ]
    return {item.of for item in flat if isinstance(item, Name)}


def _resolve_argument(argument: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(argument, tuple):
        return [_resolve_argument(item, values) for item in argument]
    return values[argument.of] if isinstance(argument, Name) else argument


def _check_declared(value: Tensor, result: Result, operation: Operation, stored: bool) -> Tensor:
    """``value`` in the type and shape the file declares for it; raises TargetError where it has another shape."""
    fits = len(result.shape) == value.dim() and all(
        expected in (None, actual) for expected, actual in zip(result.shape, value.shape, strict=True)
    )
    if not fits:
        raise TargetError(
            f"{operation.type} {result.name!r}: the file declares {list(result.shape)}, "
            f"its operands give {list(value.shape)}"
        )
    if result.kind.torch is not torch.float16:
        return value.to(result.kind.torch)
    exact = operation.type in _EXACT or not stored
    return value if exact else value.half().float()


def _perform_operation(operation: Operation, values: Mapping[str, Tensor], unrounded: Container[str]) -> list[Tensor]:
    """The declared results of one operation, rounded but for ``unrounded``. Raises TargetError for unfit arguments."""
    arguments = {key: _resolve_argument(value, values) for key, value in operation.arguments.items()}
    try:
        output = OPERATORS[operation.type](**arguments)
        results = output if isinstance(output, tuple) else (output,)
        pairs = zip(results, operation.results, strict=True)
        return [_check_declared(value, result, operation, result.name not in unrounded) for value, result in pairs]
    except TargetError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        name = operation.results[0].name if operation.results else ""
        raise TargetError(f"{operation.type} {name!r} cannot be evaluated as written: {error}") from error


class Reference:
    """A read package, ready to run: float32 [N, C, H, W] -> float32 logits [N, classes]."""

    def __init__(self, program: Program, unrounded: Container[str] = frozenset()) -> None:
        """Evaluates what depends on no image, then one blank image. Raises UnknownOperatorError, TargetError.

        ``unrounded``: names of values that are kept in float32 whatever type the file declares, as inside a kernel.
        """
        unknown = Counter(step.type for step in program.operations if step.type not in OPERATORS)
        if unknown:
            raise UnknownOperatorError(program.path, unknown)
        shape = program.input.shape
        sides = program.fed.size if program.fed.accepted else shape[2:]
        blank = [side for side in (*shape[:2], *sides) if side is not None]
        if len(blank) != len(shape) or shape[0] != 1:
            raise TargetError(f"{program.path}: wanted a program for images [1, C, H, W], one at a time, found {shape}")
        self._program = program
        self._unrounded = unrounded
        self._fixed: dict[str, Tensor] = {}
        self._steps: list[tuple[Operation, tuple[str, ...]]] = []
        with torch.inference_mode():
            self._prepare()
            self._one(torch.zeros(blank))

    def _prepare(self) -> None:
        """Split the operations into those of constants, done now, and the rest, each with the values it uses last."""
        moving = []
        for operation in self._program.operations:
            if _names(operation) <= self._fixed.keys():
                results = _perform_operation(operation, self._fixed, self._unrounded)
                self._fixed |= {result.name: value for result, value in zip(operation.results, results, strict=True)}
            else:
                moving.append(operation)
        later = {self._program.output}
        for operation in reversed(moving):
            names = _names(operation) - self._fixed.keys()
            self._steps.append((operation, tuple(names - later)))
            later |= names
        self._steps.reverse()

    def _one(self, image: Tensor) -> Tensor:
        return self._evaluated(image)[self._program.output].float()

    @torch.inference_mode()
    def trace(self, image: Tensor) -> dict[str, Tensor]:
        """Every value of the program by its name, for one float32 image [1, C, H, W]."""
        return self._evaluated(image, keep=True)

    def _evaluated(self, image: Tensor, keep: bool = False) -> dict[str, Tensor]:
        """The output, and with ``keep`` all that leads to it."""
        values = {**self._fixed, self._program.input.name: image}
        for operation, last in self._steps:
            missing = _names(operation) - values.keys()
            if missing:
                raise TargetError(
                    f"{self._program.path}: {operation.type} uses {sorted(missing)}, which nothing before it gives"
                )
            results = _perform_operation(operation, values, self._unrounded)
            for name in () if keep else last:
                del values[name]
            values |= {result.name: value for result, value in zip(operation.results, results, strict=True)}
        if self._program.output not in values:
            raise TargetError(f"{self._program.path}: the output {self._program.output!r} is never computed")
        return values

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``. Raises ValueError for images of a type or size that the package does not take."""
        pixels = self._program.fed.pixels(images)
        if pixels.shape[1] != self._program.input.shape[1]:
            raise ValueError(f"wanted images of {self._program.input.shape[1]} channels, found {pixels.shape[1]}")
        many = torch.vmap(self._one)
        parts = [many(part[:, None]).flatten(0, 1) for part in torch.split(pixels, _BATCH)]
        return torch.cat(parts)
