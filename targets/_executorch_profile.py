"""What ExecuTorch's runtime records of a .pte file's operators, and what is said where it records nothing."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from edgewise.targets import TargetError
from edgewise.targets._executorch import quiet_executorch
from edgewise.targets._executorch_runtime import load, runtime_log


def profile(path: Path, image: Tensor, threads: int) -> NoReturn:
    """Raises TargetError, which tells whether the runtime recorded anything: there is no reader of its traces.

    ``image``: as the file takes it, [1, ...]. The published wheels are built without event tracing: the runtime's own
    calls and XNNPACK's profiler are compiled to nothing, so that a traced call leaves no trace to read.
    """
    load(path, threads)  # refuses what is no program, in the words of every other command
    size = len(trace(path.read_bytes(), image))
    condition = f"a trace of {size} bytes, which is not read yet" if size else "none: it is built without event tracing"
    raise TargetError(
        f"{path}: wanted the time of each operator from the event trace of ExecuTorch's runtime, found {condition} "
        f"(executorch {version('executorch')}). Leave --profile out to time whole calls, or write the network for onnx, "
        "whose runtime times its operators"
    )


def trace(program: bytes, image: Tensor) -> bytes:
    """The event trace (ETDump) of one call of ``forward``; empty where the runtime is built without event tracing."""
    with runtime_log(), quiet_executorch(), tempfile.TemporaryDirectory() as folder:
        from executorch.extension.pybindings import portable_lib

        module = portable_lib._load_program_from_buffer(program, enable_etdump=True)
        method = module.load_method("forward")
        method.call([image])
        path = Path(folder) / "trace.etdp"
        module.write_etdump_result_to_file(str(path), str(Path(folder) / "values.bin"))
        return path.read_bytes() if path.exists() else b""
