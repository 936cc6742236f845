"""ONNX files in onnxruntime-web, that is WebAssembly, in a node process beside this one."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import weakref
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets._npm import package_folder

_SCRIPT = Path(__file__).with_name("run.mjs")
_MOST_BYTES = 1 << 26
"""Of an answer: more is no answer."""


class Runner:
    """A node process that holds the file; it ends with this object."""

    def __init__(self, path: Path, kind: str, sides: tuple[int | None, ...], threads: int) -> None:
        self._kind, self._sides = kind, sides
        shape = [1 if side is None else side for side in sides]
        words = [
            str(package_folder("onnxruntime-web") / "dist"),
            str(path.absolute()),
            "uint8" if kind == "uint8" else "float32",
            json.dumps(shape),
        ]
        self._process = subprocess.Popen(
            ["node", str(_SCRIPT), *words, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        weakref.finalize(self, _end_process, self._process)
        self.version = self._receive(path).decode(errors="replace")

    @property
    def takes(self) -> tuple[tuple[int | None, ...], str]:
        """As ``targets.TellsInput``."""
        return self._sides, self._kind

    def __call__(self, images: Tensor) -> Tensor:
        """As ``targets.Runner``."""
        answers = []
        for image in images:
            with contextlib.suppress(BrokenPipeError):  # what it said before it ended is read below
                _pipe(self._process.stdin).write(image.contiguous().numpy().tobytes())
                _pipe(self._process.stdin).flush()
            answers.append(torch.from_numpy(np.frombuffer(self._receive(None), np.float32).copy()))
        return torch.stack(answers)

    def _receive(self, path: Path | None) -> bytes:
        output = _pipe(self._process.stdout)
        head = output.read(4)
        count = struct.unpack("<i", head)[0] if len(head) == 4 else 0
        content = output.read(abs(count)) if abs(count) <= _MOST_BYTES else b""
        if count > 0 and len(content) == count:
            return content
        reason = content.decode(errors="replace") if count < 0 else f"node ended with status {self._process.wait(10)}"
        wanted = f"wanted an ONNX model that runs in WebAssembly at {path}" if path else "the file stopped answering"
        raise TargetError(f"{wanted}: onnxruntime-web says: {' '.join(reason.split())[:500]}")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            _pipe(pipe).close()
