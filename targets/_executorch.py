"""What every ExecuTorch target shares: lowering to a backend, counting what it took, writing the .pte file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.targets import Artifact, Precision
from edgewise.targets._coverage import Work, coverage_shares, node_macs
from edgewise.targets._plain_operators import EXECUTORCH
from edgewise.targets._program import for_inference, is_quantized
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers
from edgewise.targets._rewrite import Rule, rewrite_program
from edgewise.targets._subsample import subsampling_as_convolution
from edgewise.targets._whole import write_whole

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager, ExecutorchProgramManager
    from torch.export import ExportedProgram
    from torch.fx import GraphModule
    from torch.fx.passes.infra.pass_base import PassResult


_IDLE = frozenset({"getitem", "executorch_call_delegate", "alloc"})
"""Calls that move no data: they pass results along or reserve memory."""

_DEQUANTIZE = "dequantize_per_tensor"

_LOGGERS = ("torchao", "torch.utils._pytree", "executorch.backends.xnnpack", "executorch.exir")
_WARNINGS = (
    LEAF_SPEC,
    "This API is experimental and subject to change without notice",
    "(read_text|open_text|read_binary) is deprecated. Use files",
    "`torch.jit.script_method` is deprecated",
)


def quiet_executorch(*loggers: str, messages: tuple[str, ...] = ()) -> AbstractContextManager[None]:
    """Within the block ExecuTorch's harmless chatter is dropped, and that of further ``loggers`` and ``messages``."""
    return quiet_loggers(*_LOGGERS, *loggers, messages=(*_WARNINGS, *messages))


def for_executorch(program: ExportedProgram, rules: Mapping[object, Rule] = EXECUTORCH) -> ExportedProgram:
    """``program`` in operators that a backend or ExecuTorch's own kernels have, by ``rules``."""
    return with_python_names(subsampling_as_convolution(rewrite_program(for_inference(program), rules)))


def with_python_names(program: ExportedProgram) -> ExportedProgram:
    """``program``, where it has batch norms, without tensors whose names begin with a digit; a copy where it changes.

    A plain ``nn.Sequential`` has such names. ExecuTorch 1.4 names the convolution with its batch norm after them, and
    looks for the result under the name that the graph, which takes no such names, did not give it.
    """
    names = {name: f"layer_{name}" for name in (*program.state_dict, *program.constants) if name[:1].isdigit()}
    if not names or not any("batch_norm" in str(node.target) for node in program.graph.nodes):
        return program
    with quiet_loggers(messages=(LEAF_SPEC,)):
        program = copy.deepcopy(program)
    for spec in program.graph_signature.input_specs:
        spec.target = names.get(spec.target or "", spec.target)
    for tensors in (program.state_dict, program.constants):
        for old in names.keys() & tensors.keys():
            tensors[names[old]] = tensors.pop(old)
    return program


def lower_to_edge(program: ExportedProgram, partitioner: Any) -> EdgeProgramManager:
    """``program`` with what ``partitioner`` claims handed to its backend."""
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(program, transform_passes=[_give_each_reader_its_own], partitioner=[partitioner])


def _give_each_reader_its_own(module: GraphModule) -> PassResult:
    """One dequantization for each operator that reads it, as captured graphs have them before operators are taken apart.

    Where one is read inside a piece of XNNPACK's and leaves it, too, ExecuTorch 1.4 turns what leaves into channels-first
    for both, and what is read inside a second time: softplus, Mish and RMS norm in int8 did not run.
    """
    from torch.fx.passes.infra.pass_base import PassResult

    shared = [n for n in module.graph.nodes if _name(n.target) == _DEQUANTIZE and len(n.users) > 1]
    for node in shared:
        for reader in list(node.users)[1:]:
            with module.graph.inserting_before(reader):
                reader.replace_input_with(node, module.graph.node_copy(node))
    module.recompile()
    return PassResult(module, bool(shared))


def edge_coverage(edge: EdgeProgramManager) -> dict[str, Any]:
    """What the backend took and what it left outside, operator -> count, and how many pieces it got.

    More than one piece means that data crosses over in between.
    """
    module = edge.exported_program().graph_module
    inside = (_count_calls(piece.original_module.graph_module) for piece in _pieces(module))
    outside = {name: count for name, count in _count_calls(module).items() if name not in _IDLE}
    return {
        "delegates": _count_calls(module)["executorch_call_delegate"],
        "delegated": dict(sorted(sum(inside, Counter[str]()).items())),
        "undelegated": dict(sorted(outside.items())),
        "coverage": coverage_shares(_list_work(module)),
    }


def _list_work(module: GraphModule) -> Iterator[Work]:
    for piece, is_taken in [
        (module, False),
        *((piece.original_module.graph_module, True) for piece in _pieces(module)),
    ]:
        for node in piece.graph.nodes:
            name = _name(node.target)
            if node.op == "call_function" and name not in _IDLE:
                yield Work(name, node_macs(node, name), is_taken)


def planned_bytes(finished: ExecutorchProgramManager) -> dict[str, int]:
    """The memory plan of ``forward``: bytes that the runtime reserves for activations, by memory id.

    What a backend reserves inside its own delegate is not in it.
    """
    sizes = finished.executorch_program.execution_plan[0].non_const_buffer_sizes
    return {str(number): int(size) for number, size in enumerate(sizes) if number and size}


def make_artifact(target: str, path: Path, precision: Precision, facts: Mapping[str, Any]) -> Artifact:
    """A written file; ``facts`` hold ``edge_coverage``'s and whatever else the target tells."""
    counts = Counter(facts["undelegated"])
    return Artifact(
        target=target, path=path, precision=precision, undelegated=tuple(sorted(counts.elements())), facts=facts
    )


def program_precision(program: ExportedProgram) -> Precision:
    """int8 where the program holds quantize nodes."""
    return "int8" if is_quantized(program) else "float32"


def write_program(buffer: bytes, path: Path) -> None:
    """Write the file, whole or not at all."""
    with write_whole(path) as aside:
        aside.write_bytes(buffer)


def _name(target: object) -> str:
    """``aten.relu.default`` -> ``relu``: the operator without its library and overload."""
    parts = str(getattr(target, "__name__", target)).split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _count_calls(module: GraphModule) -> Counter[str]:
    return Counter(_name(node.target) for node in module.graph.nodes if node.op == "call_function")


def _pieces(module: GraphModule) -> list[Any]:
    return [getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]
