"""Reading values of a Core ML specification: immediate ones, and those kept in the weights' file.

The weights' file (MIL blob storage, version 2; ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp`` of Apple's coremltools)
is a 64-byte header, then for each tensor a 64-byte record (sentinel, element type, bytes, offset) and the elements,
all little-endian and aligned to 64 bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets.coreml._package import Package

Value = Tensor | bool | int | float | str | list[Any]
"""A constant: scalars and short integer vectors as Python values, everything else as a tensor."""

_RECORD = struct.Struct("<IIQQ")
_SENTINEL = 0xDEADBEEF
_VERSION = 2


@dataclass(frozen=True)
class Kind:
    """An element type: how it is named in the specification and kept in the weights' file."""

    name: str
    bits: int
    numpy: str
    torch: torch.dtype
    code: int | None = None
    """In the weights' file; None: never kept there."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("FLOAT16", 16, "<f2", torch.float16, 1),
        Kind("FLOAT32", 32, "<f4", torch.float32, 2),
        Kind("UINT8", 8, "u1", torch.uint8, 3),
        Kind("INT8", 8, "i1", torch.int8, 4),
        Kind("INT16", 16, "<i2", torch.int16, 6),
        Kind("UINT16", 16, "<u2", torch.int32, 7),
        Kind("INT4", 4, "i1", torch.int8, 8),
        Kind("UINT1", 1, "u1", torch.uint8, 9),
        Kind("UINT2", 2, "u1", torch.uint8, 10),
        Kind("UINT4", 4, "u1", torch.uint8, 11),
        Kind("UINT3", 3, "u1", torch.uint8, 12),
        Kind("UINT6", 6, "u1", torch.uint8, 13),
        Kind("INT32", 32, "<i4", torch.int32, 14),
        Kind("UINT32", 32, "<u4", torch.int64, 15),
        Kind("INT64", 64, "<i8", torch.int64),
        Kind("BOOL", 8, "?", torch.bool),
    )
}


def kind_of(tensor_type: Any) -> Kind:
    """The element type of a ``TensorType`` message."""
    enum = tensor_type.DESCRIPTOR.fields_by_name["dataType"].enum_type
    name = enum.values_by_number[tensor_type.dataType].name
    if name not in KINDS:
        raise TargetError(f"element type {name} is not among those understood: {', '.join(KINDS)}")
    return KINDS[name]


def shape_of(tensor_type: Any) -> tuple[int | None, ...]:
    """The sizes of a ``TensorType`` message; None where the file leaves one open."""
    return tuple(
        int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None
        for size in tensor_type.dimensions
    )


def unpack_bits(packed: bytes, bits: int, count: int, signed: bool = False) -> np.ndarray[Any, Any]:
    """``count`` integers of ``bits`` bits each, packed from the least significant bit of the first byte onwards."""
    stream = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=bits * count, bitorder="little")
    values = (stream.reshape(count, bits).astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(1)
    if signed:
        values = values - ((values >> (bits - 1)) << bits)
    narrow: np.ndarray[Any, Any] = values.astype(np.int8 if signed else np.uint8)
    return narrow


def _read_elements(raw: bytes, kind: Kind, count: int, where: str) -> np.ndarray[Any, Any]:
    nbytes = math.ceil(count * kind.bits / 8)
    if len(raw) != nbytes:
        raise TargetError(f"{where}: wanted {nbytes} bytes for {count} {kind.name} elements, found {len(raw)}")
    if kind.bits < 8:
        return unpack_bits(raw, kind.bits, count, signed=kind.name.startswith("INT"))
    return np.frombuffer(raw, dtype=kind.numpy)


class Reader:
    """Turns ``Value`` messages of one package into constants; every weights' file is read once."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._files: dict[Path, bytes] = {}

    def value(self, message: Any) -> Value:
        """Raises TargetError for a value whose bytes are missing or are not what its type says."""
        if message.type.WhichOneof("type") != "tensorType":
            raise TargetError(f"wanted a tensor constant, found {message.type.WhichOneof('type')}")
        if message.WhichOneof("value") == "blobFileValue":
            return self._stored(message)
        tensor = message.immediateValue.tensor
        if tensor.WhichOneof("value") == "strings":
            return str(tensor.strings.values[0])
        return _simplify_elements(self._immediate(message), message.type.tensorType)

    def _immediate(self, message: Any) -> np.ndarray[Any, Any]:
        tensor, kind = message.immediateValue.tensor, kind_of(message.type.tensorType)
        count = math.prod(size or 0 for size in shape_of(message.type.tensorType))
        values = getattr(tensor, tensor.WhichOneof("value")).values
        if isinstance(values, bytes):
            return _read_elements(values, kind, count, "an immediate value")
        if len(values) not in (1, count):
            raise TargetError(f"an immediate value: wanted {count} {kind.name} elements, found {len(values)}")
        return np.broadcast_to(np.array(list(values), dtype=kind.numpy), (count,))

    def _stored(self, message: Any) -> Value:
        tensor_type, blob = message.type.tensorType, message.blobFileValue
        kind = kind_of(tensor_type)
        path = self._package.resolve(blob.fileName)
        if path not in self._files:
            self._files[path] = path.read_bytes()
        count = math.prod(size or 0 for size in shape_of(tensor_type))
        raw = _read_record(self._files[path], int(blob.offset), kind, path)
        return _simplify_elements(_read_elements(raw, kind, count, f"{path} at {blob.offset}"), tensor_type)


def _read_record(content: bytes, offset: int, kind: Kind, path: Path) -> bytes:
    """The bytes of the tensor whose record stands at ``offset``."""
    if len(content) < 64 or struct.unpack_from("<I", content, 4)[0] != _VERSION:
        raise TargetError(f"{path}: wanted a weights' file of version {_VERSION}, found something else")
    if offset + 64 > len(content):
        raise TargetError(f"{path}: truncated; wanted a record at {offset}, found the end at {len(content)}")
    sentinel, code, size, start = _RECORD.unpack_from(content, offset)
    if sentinel != _SENTINEL or code != kind.code:
        raise TargetError(
            f"{path}: wanted a record of {kind.name} at {offset}, found sentinel {sentinel:#x}, type {code}"
        )
    if start + size > len(content):
        raise TargetError(f"{path}: truncated; wanted {size} bytes at {start}, found the end at {len(content)}")
    return content[start : start + size]


def _simplify_elements(elements: np.ndarray[Any, Any], tensor_type: Any) -> Value:
    """Scalars and vectors of indices (sizes, axes, masks) as Python values; float16 widened, which is exact."""
    kind, shape = kind_of(tensor_type), shape_of(tensor_type)
    if not shape:
        scalar: bool | int | float = elements.reshape(()).item()
        return scalar
    if len(shape) == 1 and kind.name in ("INT32", "UINT32", "BOOL", "INT64"):
        return [item.item() for item in elements]
    tensor = torch.from_numpy(elements.astype(elements.dtype.newbyteorder("="))).to(kind.torch)
    tensor = tensor.reshape([size or 0 for size in shape])
    return tensor.float() if kind.torch is torch.float16 else tensor
