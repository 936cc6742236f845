"""ExecuTorch's own runtime: loads a .pte file and runs it, whichever of its backends the file was lowered to."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from edgewise.targets import TargetError
from edgewise.targets._executorch import quiet_executorch

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")


class _Runner:
    """Calls a loaded program, one batch of its own size at a time."""

    def __init__(self, program: Any, buffer: bytes) -> None:
        self._held = program, buffer  # the method points into both
        self._method = program.load_method("forward")
        self._meta = self._method.method_meta().input_tensor_meta(0)
        self._batch = self._meta.sizes()[0]

    @property
    def takes(self) -> tuple[tuple[int | None, ...], str]:
        """As ``targets.TellsInput``: the largest it was planned for."""
        return tuple(self._meta.sizes()), {0: "uint8", 5: "half", 6: "float"}.get(int(self._meta.dtype()), "")

    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``."""
        parts = torch.split(images.contiguous(), self._batch)
        return torch.cat([self._method.call([part])[0] for part in parts])


_RUNTIME_LOG = re.compile(r"\[\w+\.(?:cpp|h|cc):\d+\] ")


@contextmanager
def runtime_log() -> Iterator[list[str]]:
    """Collects what the C++ runtime logs, by way of ``sys.stderr``, within the block; other lines still appear there."""
    lines: list[str] = []
    stream = io.StringIO()
    try:
        with redirect_stderr(stream):
            yield lines
    finally:
        for line in stream.getvalue().splitlines():
            if _RUNTIME_LOG.match(line):
                lines.append(_RUNTIME_LOG.sub("", line))
            else:
                print(line, file=sys.stderr)


def load(path: Path, threads: int) -> _Runner:
    """The file in ExecuTorch's own runtime on ``threads`` threads. Raises TargetError for a file it cannot read.

    The runtime has one thread pool for the whole process: loading with another count resets it for every loaded file.
    """
    with runtime_log(), quiet_executorch():
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
    return _read_program(path, _Runner)


def read_constants(path: Path, names: Sequence[str]) -> list[float]:
    """What the file's constant methods called ``names`` answer. Raises TargetError as ``load``, and where one is missing."""

    def read(program: Any, buffer: bytes) -> list[float]:
        return [float(program.load_method(name).call([])[0]) for name in names]

    return _read_program(path, read)


def _read_program(path: Path, make: Callable[[Any, bytes], T]) -> T:
    try:
        buffer = path.read_bytes()
    except OSError as error:
        raise TargetError(f"wanted an ExecuTorch program at {path}, found: {error.strerror}; export it") from error
    refusal: RuntimeError | None = None
    with runtime_log() as log, quiet_executorch():
        from executorch.extension.pybindings import portable_lib

        try:
            return make(portable_lib._load_program_from_buffer(buffer), buffer)
        except RuntimeError as error:
            refusal = error
    raise TargetError(
        f"wanted an ExecuTorch program at {path}, found {len(buffer)} bytes that its runtime refuses "
        f"({'; '.join([str(refusal), *log])}); export it again"
    ) from refusal
