"""Files of weights, read without running anything that is in them, and what else a file may be that is given for one."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgewise.errors import RequestError

_HEAD = 512


def read(path: Path) -> Any:
    """The content of a safetensors file or of one written by ``torch.save``: tensors, numbers, texts and containers.

    Raises RequestError for a file that is something else, with what it is.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder; --weights wants the file in it that holds the tensors")
    if not path.is_file():
        raise RequestError(f"there is no weights file {path}")
    if (other := _other_kind(path)) is not None:
        raise RequestError(f"{path} is {other}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(_harmless_types()), path.open("rb") as file:  # torch would go by the name
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(
            f"{path} is not a readable weights file, or not a whole one: {reason}; fetch or save it again"
        ) from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        kind = _named_class(str(error))
        doubt = "" if kind else "is not a readable weights file, or "
        raise RequestError(
            f"{path} {doubt}holds more than plain tensors{kind}, and code in a checkpoint is never executed "
            "here. Save it again with torch.save(model.state_dict(), ...) or safetensors."
        ) from error


def _is_safetensors(path: Path) -> bool:
    """By the content, since files are called otherwise: the length of a header of JSON, and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _harmless_types() -> list[Any]:
    """What training scripts put beside the weights and only holds values: their arguments, dates, paths, NumPy's numbers
    and arrays, these under the names that older versions gave them too."""
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    arrays = np._core.multiarray  # type: ignore[attr-defined]
    makers = [arrays.scalar, arrays._reconstruct]
    older = [(maker, f"numpy.core.multiarray.{maker.__name__}") for maker in makers]
    dates = [datetime.datetime, datetime.date, datetime.timedelta]
    values = [argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath]
    return [*values, *dates, np.dtype, np.ndarray, *kinds, *makers, *older]


def _named_class(message: str) -> str:
    """The class that the file names, out of torch's message."""
    _, separator, rest = message.partition("GLOBAL ")
    name = rest.split()[0].strip(".,") if separator and rest.split() else ""
    return f" ({name})" if name else ""


def _other_kind(path: Path) -> str | None:
    """What a file is that holds no weights as these are read here, as the end of a sentence; None: nothing known."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for recognise, what in _KINDS:
        if recognise(path, head):
            return what
    return None


def _archive_members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_torchscript(path: Path, head: bytes) -> bool:
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in _archive_members(path))


def _is_exported(path: Path, head: bytes) -> bool:
    names = _archive_members(path)
    return any(n.endswith(("archive_format", "serialized_exported_program.json")) or "/models/" in n for n in names)


def _is_arrays(path: Path, head: bytes) -> bool:
    names = _archive_members(path)
    return head.startswith(b"\x93NUMPY") or (bool(names) and all(name.endswith(".npy") for name in names))


def _is_onnx(path: Path, head: bytes) -> bool:
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64])


def _is_text(path: Path, head: bytes) -> bool:
    return head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head)


Recognise = Callable[[Path, bytes], bool]
_KINDS: tuple[tuple[Recognise, str], ...] = (
    (lambda _, head: not head, "empty; fetch or save it again"),
    (
        lambda path, head: head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar",
        "a compressed or tar archive; unpack it and give the file of weights in it",
    ),
    (
        _is_torchscript,
        "a TorchScript file: a program with its weights inside, whose layers can no longer be cut or quantized here. "
        "Wanted the weights alone, for the network of --model: torch.save(torch.jit.load(FILE).state_dict(), "
        "'weights.pt')",
    ),
    (
        _is_onnx,
        "an ONNX file: a finished graph for a runtime, whose weights no longer carry the network's names. Wanted the "
        "weights that it was exported from, or another export of them by this program",
    ),
    (
        _is_exported,
        "a program written by torch.export.save. Wanted the weights alone: "
        "torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
    ),
    (_is_arrays, "a file of NumPy arrays; wanted one of torch.save or safetensors, with the network's own names"),
    (lambda _, head: head[4:8] == b"TFL3", "a TensorFlow Lite file; wanted weights for the PyTorch network of --model"),
    (
        lambda _, head: head.startswith(b"\x89HDF"),
        "an HDF5 file, as Keras writes; wanted weights for the PyTorch network of --model",
    ),
    (
        lambda _, head: head.startswith(b"version https://git-lfs"),
        "a pointer of Git LFS, not the file itself; fetch it with 'git lfs pull'",
    ),
    (
        lambda _, head: head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")),
        "a web page, most likely a failed download; fetch the file again",
    ),
    (
        lambda path, _: path.name.endswith(".index.json"),
        "the index of weights split over several files; join these into one safetensors file",
    ),
    (_is_text, "text; wanted a file of torch.save or safetensors"),
)  # fmt: skip
