"""Lowering to Ethos-U: integers only, by way of TOSA and Vela, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.targets import USUAL, Artifact, Packaging, TargetError
from edgewise.targets._executorch import edge_coverage, lower_to_edge, make_artifact, quiet_executorch
from edgewise.targets._program import as_captured, find_image, for_inference, is_quantized
from edgewise.targets._subsample import subsampling_as_convolution
from edgewise.targets.ethos_u._integers import as_integers, mark_integers
from edgewise.targets.ethos_u._vela import ACCELERATOR, SUMMARY

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch.export import ExportedProgram


PROGRAM, TOSA = "network.pte", "network.tosa"
_LOGGERS = ("executorch.backends.arm",)
_WARNINGS = ("(set|get)_output_order_workaround\\(\\) is deprecated",)


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Write a folder: the .pte for the device, the TOSA program Vela compiled, Vela's table.

    Images go in and logits come out as int8; their grids are constant methods of the .pte (``input0_scale``,
    ``input0_zp``, ``output0_scale``, ``output0_zp``). The last two are written where the NPU has the whole network in
    one piece; otherwise what is left to the CPU is told in the artifact. Raises TargetError for a float program.
    """
    as_captured(packaging, "ethos_u")
    if not is_quantized(program):
        raise TargetError("Ethos-U computes in integers only, found a float network; give the recipe a quantization")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch,
        quiet_executorch(*_LOGGERS, messages=_WARNINGS),
    ):
        work, folder = Path(scratch) / "work", Path(scratch) / path.name
        work.mkdir()
        folder.mkdir()
        edge = _integer_ends(_lower_program(program, work))
        facts = edge_coverage(edge) | {"accelerator": ACCELERATOR}
        (folder / PROGRAM).write_bytes(_serialise_program(edge))
        if facts["delegates"] == 1 and not facts["undelegated"]:
            _keep_files(work, folder)
        shutil.rmtree(path, ignore_errors=True)
        folder.rename(path)
    return make_artifact("ethos_u", path, "int8", facts)


def _lower_program(program: ExportedProgram, work: Path) -> EdgeProgramManager:
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner

    spec = EthosUCompileSpec(ACCELERATOR).dump_intermediate_artifacts_to(str(work))
    integers = as_integers(subsampling_as_convolution(for_inference(program)))
    mark_integers(integers)
    with _vela_output() as output:
        try:
            return lower_to_edge(integers, EthosUPartitioner(spec))
        except SystemExit as error:  # how Vela ends on a program it cannot compile
            raise TargetError(f"Vela cannot compile the network: {output.getvalue().strip()[-500:]}") from error


@contextlib.contextmanager
def _vela_output() -> Iterator[io.StringIO]:
    """Vela prints its summary; it is kept as a file instead."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        yield output


def _integer_ends(edge: EdgeProgramManager) -> EdgeProgramManager:
    """``edge`` without the first quantization and the last dequantization, which a device does once, outside.

    As it is, where the first or the last operator stayed in float.
    """
    from executorch.exir.passes.quantize_io_pass import QuantizeInputs, QuantizeOutputs

    program = edge.exported_program()
    image = find_image(program)
    (logits,) = program.graph.output_node().args[0]
    starts = [str(user.target).split(".")[-2] for user in image.users]
    if starts != ["quantize_per_tensor"] or "dequantize_per_tensor" not in str(logits.target):
        return edge
    return edge.transform([QuantizeInputs(edge, [0]), QuantizeOutputs(edge, [0])])


def _serialise_program(edge: EdgeProgramManager) -> bytes:
    import executorch.kernels.quantized  # noqa: F401 - names the CPU kernels that a program in pieces calls

    return bytes(edge.to_executorch().buffer)


def _keep_files(work: Path, folder: Path) -> None:
    """The TOSA program and the table of the one piece, out of the compiler's working folder."""
    shutil.copy2(work / "out.tosa", folder / TOSA)
    (summary,) = work.glob("output/*_summary_*.csv")
    shutil.copy2(summary, folder / SUMMARY)
