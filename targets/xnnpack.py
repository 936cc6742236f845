"""ExecuTorch with the XNNPACK backend: a .pte file for CPUs of phones, boards and desktops."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from targets import USUAL, Artifact, Grid, Packaging, Target, TargetError
from targets._program import as_captured, for_inference
from targets._quiet import quiet
from targets._subsample import subsampling_as_convolution

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule
    from torchao.quantization.pt2e.quantizer import Quantizer

_IDLE = frozenset({"getitem", "executorch_call_delegate", "alloc"})
"""Calls that move no data: they pass results along or reserve memory."""

_FOREIGN_LOGGERS = ("torchao", "torch.utils._pytree", "executorch.backends.xnnpack", "executorch.exir")
_FOREIGN_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "This API is experimental and subject to change without notice",
    "(read_text|open_text|read_binary) is deprecated. Use files",
    "`torch.jit.script_method` is deprecated",
)


def _quantizer(grid: Grid, qat: bool = False) -> Quantizer:
    with quiet(*_FOREIGN_LOGGERS):
        from targets._int8 import Int8Quantizer
    return Int8Quantizer(grid, qat=qat)


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Lower ``program``, captured at batch 1, to XNNPACK and write the .pte file, whole or not at all."""
    as_captured(packaging, "xnnpack")
    with quiet(*_FOREIGN_LOGGERS, messages=_FOREIGN_WARNINGS):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = subsampling_as_convolution(for_inference(program))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        module = edge.exported_program().graph_module
        left, delegated, delegates = _left_outside(module), _delegated(module), _delegates(module)
        buffer = edge.to_executorch().buffer
    _write(buffer, path)
    int8 = any(_name(node.target) == "quantize_per_tensor" for node in program.graph.nodes)
    return Artifact(
        target="xnnpack",
        path=path,
        precision="int8" if int8 else "float32",
        undelegated=tuple(sorted(left.elements())),
        facts={
            "delegates": delegates,
            "delegated": dict(sorted(delegated.items())),
            "undelegated": dict(sorted(left.items())),
        },
    )


def _name(target: object) -> str:
    """``aten.relu.default`` -> ``relu``: the operator without its library and overload."""
    parts = str(getattr(target, "__name__", target)).split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _calls(module: GraphModule) -> Counter[str]:
    return Counter(_name(node.target) for node in module.graph.nodes if node.op == "call_function")


def _left_outside(module: GraphModule) -> Counter[str]:
    """Operator -> count of those that the portable kernels will run, outside every delegate."""
    return Counter({name: count for name, count in _calls(module).items() if name not in _IDLE})


def _lowered(module: GraphModule) -> list[Any]:
    return [getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]


def _delegates(module: GraphModule) -> int:
    """How many separate pieces XNNPACK got: more than one means that data crosses over in between."""
    return _calls(module)["executorch_call_delegate"]


def _delegated(module: GraphModule) -> Counter[str]:
    """Operator -> count inside all delegates."""
    inside = (_calls(piece.original_module.graph_module) for piece in _lowered(module))
    return sum(inside, Counter())


def _write(buffer: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        aside.write_bytes(buffer)
        aside.replace(path)


class _Runner:
    """Calls a loaded program, one batch of its own size at a time."""

    def __init__(self, program: Any, buffer: bytes) -> None:
        self._held = program, buffer  # the method points into both
        self._method = program.load_method("forward")
        self._batch = self._method.method_meta().input_tensor_meta(0).sizes()[0]

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [N, C, H, W] -> float32 logits [N, classes]."""
        parts = torch.split(images.float().contiguous(), self._batch)
        return torch.cat([self._method.call([part])[0] for part in parts])


_RUNTIME_LOG = re.compile(r"\[\w+\.(?:cpp|h|cc):\d+\] ")


@contextmanager
def _runtime_log() -> Iterator[list[str]]:
    """Collects what the C++ runtime logs, by way of ``sys.stderr``, within the block; other lines still appear there."""
    found: list[str] = []
    written = io.StringIO()
    try:
        with redirect_stderr(written):
            yield found
    finally:
        for line in written.getvalue().splitlines():
            if _RUNTIME_LOG.match(line):
                found.append(_RUNTIME_LOG.sub("", line))
            else:
                print(line, file=sys.stderr)


def load(path: Path, threads: int) -> _Runner:
    """The file in ExecuTorch's own runtime on ``threads`` threads. Raises TargetError for a file it cannot read.

    The runtime has one thread pool for the whole process: loading with another count resets it for every loaded file.
    """
    try:
        buffer = path.read_bytes()
    except OSError as error:
        raise TargetError(f"wanted an ExecuTorch program at {path}, found: {error.strerror}; export it") from error
    refusal: RuntimeError | None = None
    with _runtime_log() as log, quiet(*_FOREIGN_LOGGERS, messages=_FOREIGN_WARNINGS):
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        try:
            return _Runner(portable_lib._load_program_from_buffer(buffer), buffer)
        except RuntimeError as error:
            refusal = error
    raise TargetError(
        f"wanted an ExecuTorch program at {path}, found {len(buffer)} bytes that its runtime refuses "
        f"({'; '.join([str(refusal), *log])}); export it again"
    ) from refusal


TARGET = Target(
    name="xnnpack",
    summary="ExecuTorch with XNNPACK on a CPU (Android, iOS, Linux)",
    suffix=".pte",
    extra="xnnpack",
    needs=("executorch",),
    grids=(Grid(weight_bits=8), Grid(weight_bits=7)),
    quantizer=_quantizer,
    export=export,
    load=load,
)
