"""Lowering to LiteRT: a .tflite file whose int8 operators are integers, in the order and on the grids of the program.

The converter makes integers of a program only if it is told to look for quantizations, and only of weights that are
themselves quantized in the program; else it writes, and says nothing, a float network between quantizations and
dequantizations: slower than float, and as large. Where it is not told to keep to those that are there, it also makes
integers of layers that were left in float, on ranges of its own. So what became of every convolution and product is read
back from the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.fx import GraphModule, Node

from edgewise.targets import USUAL, Artifact, Packaging, Precision, TargetError
from edgewise.targets._coverage import Work, coverage_shares
from edgewise.targets._grouped import merge_narrow_groups
from edgewise.targets._program import chosen_precision, fitting_sizes, for_inference
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers, without_standard_error
from edgewise.targets._rewrite import rewrite_program
from edgewise.targets._rounded import rounded_in_the_graph
from edgewise.targets._subsample import subsampling_as_convolution
from edgewise.targets._whole import write_whole
from edgewise.targets.litert._constants import fold_constants
from edgewise.targets.litert._flatbuffer import (
    Operation,
    float_ends,
    name_ends,
    operations,
    read_model,
    set_metadata,
    write_model,
)
from edgewise.targets.litert._operators import PLAIN, is_a
from edgewise.targets.litert._runtime import operators_outside
from edgewise.targets.litert._widening import widen_slow_integers

if TYPE_CHECKING:
    from torch.export import ExportedProgram


PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8-weights")
"""Of float networks, the usual one first. float16 and int8 weights are widened as the file is loaded: it is smaller and
computes in float32, in float16 only where a phone's runtime is told to."""

LABELS = "labels"
"""Key of the file's metadata that holds the class names, a JSON list in the order of the outputs."""

IMAGE, ANSWER = "image", "answer"
"""What every file calls its input and its output."""

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.conv1d.default: 1, _aten.conv2d.default: 1, _aten.conv2d.padding: 1, _aten.convolution.default: 1,
    _aten.conv_transpose1d.default: 1, _aten.conv_transpose2d.input: 1, _aten.linear.default: 1, _aten.addmm.default: 1,
    _aten.mm.default: 1, _aten.matmul.default: 1, _aten.bmm.default: 1, _aten.baddbmm.default: 1, _aten.einsum.default: 1,
    _aten.scaled_dot_product_attention.default: 2,
}  # fmt: skip
"""Operators of a captured program that are convolutions or products -> how many of them."""
_AFTER_A_SUM = frozenset({_aten.addmm.default, _aten.baddbmm.default})
"""Those whose first argument is what is added."""
_CLIPS = frozenset(
    {
        _aten.relu.default, _aten.relu_.default, _aten.relu6.default, _aten.relu6_.default, _aten.hardtanh.default,
        _aten.hardtanh_.default, _aten.clamp.default, _aten.clamp_.default,
    }
)  # fmt: skip
_LOGGERS = ("torchao", "torch.utils._pytree", "jax", "jax._src.xla_bridge", "absl")


def export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    """Write ``program``, captured at batch 1, to ``path``; int8 when it holds quantize nodes, else as ``packaging`` says.

    ``undelegated`` holds the convolutions and products that are integers in the program and float in the file.
    """
    fitting_sizes(packaging, "litert")
    precision = chosen_precision(program, packaging, "litert", PRECISIONS)
    ready = prepare_program(program)
    content = _narrow_weights(_convert_program(ready), precision)
    model = read_model(content, "what the converter wrote")
    name_ends(model, IMAGE, ANSWER)
    float_ends(model)
    model.description = "edgewise"
    set_metadata(model, _metadata(packaging))
    lost = _lost_integers(ready, list(operations(model))) if precision == "int8" else ()
    widen_slow_integers(model)
    with write_whole(path) as aside:
        aside.write_bytes(write_model(model))
    work, outside = list(operations(model)), operators_outside(path)
    return Artifact(
        target="litert",
        path=path,
        precision=precision,
        undelegated=lost,
        facts=_file_facts(work, outside, precision),
    )


def prepare_program(program: ExportedProgram) -> ExportedProgram:
    """``program`` in the operators that the runtime computes in integers, its nodes' names as they are in the file."""
    plain = rewrite_program(for_inference(merge_narrow_groups(program)), PLAIN)
    return rounded_in_the_graph(subsampling_as_convolution(plain), every_constant=True)


def _convert_program(program: ExportedProgram) -> bytes:
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    fold_constants(module)
    _name_results(module)
    example = cast(tuple[torch.Tensor, ...], program.example_inputs[0])
    with _quiet_converter():
        import litert_torch
        from litert_torch import progress
        from litert_torch.quantize import pt2e_quantizer, quant_config

        # The quantizer itself is not asked: its settings tell the converter that there are integers to look for.
        static = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        settings = quant_config.QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(static))
        progress.config.show_progress = False
        try:
            with _strictly():
                return bytes(litert_torch.convert(module, example, quant_config=settings).model_content())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise TargetError(f"LiteRT's converter cannot write the network: {str(error).strip()[:500]}") from error


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Have the converter keep to the quantizations that a program has: its public interface does not ask."""
    from litert_torch._convert import litert_converter

    native = litert_converter.converter_api_ext
    usual = native.ConvertToTFLConfig

    def make_strict() -> Any:
        settings = usual()
        settings.strict_qdq_mode = True
        return settings

    native.ConvertToTFLConfig = make_strict
    try:
        yield
    finally:
        native.ConvertToTFLConfig = usual


def _name_results(module: GraphModule) -> None:
    """Have the converter call each value after its node: it takes the names of layers, and paths where there are none."""
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {node.name: ("", node.name)}
            node.meta.pop("stack_trace", None)
    module.recompile()


@contextlib.contextmanager
def _quiet_converter() -> Iterator[None]:
    """Without what the converter and the libraries below it say about themselves."""
    root = logging.getLogger()
    level = root.level
    with quiet_loggers(*_LOGGERS, messages=(LEAF_SPEC,)), without_standard_error(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)  # it warns through the root that a graph without layers is in training
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            root.setLevel(level)


def _narrow_weights(content: bytes, precision: Precision) -> bytes:
    """A float file with its weights as float16 or int8, each behind a dequantization."""
    if precision not in ("float16", "int8-weights"):
        return content
    with _quiet_converter():
        from ai_edge_quantizer import quantizer, recipe

        work = quantizer.Quantizer(bytearray(content))
        if precision == "int8-weights":
            work.load_quantization_recipe(recipe.weight_only_wi8_afp32())
        else:
            work.load_quantization_recipe(_float16_recipe())
        narrowed = work.quantize().quantized_model
    if narrowed is None:
        raise TargetError(f"found no weight to store in a {precision} file; choose another precision")
    return bytes(narrowed)


def _float16_recipe() -> list[dict[str, Any]]:
    weights = {"num_bits": 16, "dtype": "FLOAT", "symmetric": True, "granularity": "TENSORWISE", "block_size": 0}
    settings = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": settings}]


def _metadata(packaging: Packaging) -> dict[str, str]:
    labels = {LABELS: json.dumps(packaging.labels, ensure_ascii=False)} if packaging.labels else {}
    return labels | dict(packaging.metadata)


def _lost_integers(program: ExportedProgram, work: list[Operation]) -> tuple[str, ...]:
    """The float convolutions and products of the file, where it has more of them than ``program``; which of them are
    the program's own cannot be told."""
    names = [item.name for item in work if item.is_product and not item.integers]
    return tuple(names) if len(names) > _count_float_products(program) else ()


def _count_float_products(program: ExportedProgram) -> int:
    return sum(
        _PRODUCTS[node.target] for node in program.graph.nodes if node.target in _PRODUCTS and not _is_int8(node)
    )


def _is_int8(node: Node) -> bool:
    """Whether the program quantizes the factors of ``node`` and what it gives."""
    first = 1 if node.target in _AFTER_A_SUM else 0
    clips = [user for user in node.users if user.target in _CLIPS]
    readers = [user for user in (*node.users, *(user for clip in clips for user in clip.users)) if user not in clips]
    return all(is_a(factor, "dequantize_per") for factor in node.args[first : first + 2]) and all(
        is_a(reader, "quantize_per_tensor") for reader in readers
    )


def _file_facts(work: list[Operation], outside: Counter[str], precision: Precision) -> dict[str, Any]:
    int8 = precision == "int8"
    floats = Counter(item.name for item in work if item.is_float_arithmetic)
    kernels = [Work(item.name, item.macs, item.integers or not int8) for item in work if item.is_product]
    return {
        "operators": dict(sorted(Counter(item.name for item in work).items())),
        "float_operators": dict(sorted(floats.items())) if int8 else {},
        "undelegated": dict(sorted(outside.items())),
        "coverage": coverage_shares(kernels),
    }
