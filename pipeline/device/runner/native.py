"""ExecuTorch's runtime as a library with two C functions, for devices without PyTorch.

The folder that ``EDGEWISE_EXECUTORCH`` names holds ``version``, the libraries, and ``libraries``: their names, a line
each, in the order in which they are loaded; the last one is made from ``pte.cpp``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VARIABLE = "EDGEWISE_EXECUTORCH"
_ROOM = 512


def folder() -> Path | None:
    """The folder; None where the device names none."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def version(place: Path) -> str:
    """Of the runtime in it. Raises OSError for a folder that is none of these."""
    return (place / "version").read_text(encoding="ascii").strip()


def load(place: Path, path: Path, threads: int) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The file at ``path``, ready to run: one image as it is fed -> float32 [1, classes]. Raises ValueError as it says."""
    library = _library(place)
    content = path.read_bytes()
    message = ctypes.create_string_buffer(_ROOM)
    session = library.edgewise_open(content, len(content), threads, message, _ROOM)
    if not session:
        raise ValueError(message.value.decode(errors="replace"))
    classes = int(library.edgewise_classes(session))

    def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        pixels, logits = np.ascontiguousarray(image), np.empty((1, classes), np.float32)
        places = (pixels.ctypes.data, pixels.nbytes, logits.ctypes.data)
        if library.edgewise_run(session, *places, classes, message, _ROOM):
            raise ValueError(message.value.decode(errors="replace"))
        return logits

    return run


def _library(place: Path) -> Any:
    names = (place / "libraries").read_text(encoding="ascii").split()
    libraries = [ctypes.CDLL(str(place / name), mode=os.RTLD_GLOBAL | os.RTLD_LAZY) for name in names]
    library = libraries[-1]
    sizes = (ctypes.c_char_p, ctypes.c_size_t)
    library.edgewise_open.argtypes = [*(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32), *sizes]
    library.edgewise_open.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p
    library.edgewise_run.argtypes = [pointer, pointer, ctypes.c_size_t, pointer, ctypes.c_size_t, *sizes]
    library.edgewise_classes.argtypes = [pointer]
    library.edgewise_classes.restype = ctypes.c_size_t
    return library
