"""Every contender: how its file is made from the same float network."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgewise import targets
from edgewise.library_noise import quiet_capture
from edgewise.network.captured import Prepare, convert, export_graph
from edgewise.network.tensors import fill_tensors
from edgewise.stage import Context
from edgewise.stages.quantize import Quantize
from edgewise.studies.peers.subject import Subject
from edgewise.targets import Grid

Side = Literal["float", "ours", "peer"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to a file."""

    name: str
    """Also the file's name."""
    title: str
    runtime: str
    """The target whose runtime runs it."""
    side: Side
    make: Callable[[Subject, Path], None]
    """Writes the file for a network."""


def _float_maker(runtime: str) -> Callable[[Subject, Path], None]:
    def make(subject: Subject, path: Path) -> None:
        with quiet_capture():
            program = torch.export.export(subject.folded, (torch.zeros(1, *subject.shape),))
        targets.get(runtime).export(program, path, targets.USUAL)

    return make


def _quantized_maker(runtime: str) -> Callable[[Subject, Path], None]:
    """The project's own way: its quantizer on the target's widest grid, calibrated, no training."""

    def make(subject: Subject, path: Path) -> None:
        target = targets.get(runtime)
        target.export(quantize_subject(subject, target.grids[0], path.parent), path, targets.USUAL)

    return make


def quantize_subject(subject: Subject, grid: Grid, folder: Path) -> ExportedProgram:
    """The network calibrated on ``grid``, captured at batch 1 as every target is given it."""
    count = len(subject.calibration())
    context = Context(spec=subject.spec, data=subject.data, scratch=folder, grid=grid)
    graph = Quantize(training=None, calibrate=count, sensitivity=0)(subject.folded, context)
    single = Prepare(grid.to_json(), subject.shape).capture(subject.folded, batch=1)
    fill_tensors(single, graph.state_dict())
    with quiet_capture():
        return torch.export.export(convert(single), (torch.zeros(1, *subject.shape),))


def _quantize_static(reduce_range: bool) -> Callable[[Subject, Path], None]:
    """ONNX Runtime's static quantizer: u8 activations, per-channel s8 weights, QDQ, min-max calibration."""

    def make(subject: Subject, path: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        images = subject.calibration()

        class Reader(CalibrationDataReader):
            def __init__(self, name: str) -> None:
                self._images = iter(_feed_images(name, images))

            def get_next(self) -> dict[str, Any] | None:
                return next(self._images, None)

        source, prepared = path.with_name("onnx-float.onnx"), path.with_name(f"{path.stem}.prepared.onnx")
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            Reader(_input_name(prepared)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        prepared.unlink()

    return make


def _quantize_nncf(subject: Subject, path: Path) -> None:
    """NNCF's post-training quantization with its defaults."""
    import nncf
    import onnx

    source = path.with_name("onnx-float.onnx")
    feeds = list(_feed_images(_input_name(source), subject.calibration()))
    kind = nncf.ModelType.TRANSFORMER if "vit" in subject.name else None
    model = nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds), model_type=kind)
    onnx.save(model, path)


def _stock_xnnpack(subject: Subject, path: Path) -> None:
    """ExecuTorch's own recipe: its XNNPACK quantizer over pt2e, per channel, lowered with its partitioner."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(export_graph(subject.network, subject.shape, 1), quantizer)
    with torch.no_grad():
        for image in subject.calibration():
            prepared(image[None])
    with quiet_capture():
        program = torch.export.export(convert_pt2e(prepared), (torch.zeros(1, *subject.shape),))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(edge.to_executorch().buffer)


def _edge_static(subject: Subject, path: Path) -> None:
    """LiteRT's own quantizer of finished files, ai-edge-quantizer: int8 weights per channel and int8 activations.

    Its file takes and gives int8; float32 at either end makes it comparable.
    """
    from ai_edge_quantizer import quantizer, recipe

    from edgewise.targets._quiet import without_standard_error
    from edgewise.targets.litert._flatbuffer import float_ends, read_model, write_model

    source = path.with_name("litert-float.tflite")
    with contextlib.redirect_stdout(io.StringIO()), without_standard_error():
        work = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        ranges = work.calibrate({"serving_default": list(_feed_images("image", subject.calibration()))})
        content = work.quantize(ranges).quantized_model
    model = read_model(bytes(content or b""), "what ai-edge-quantizer wrote")
    float_ends(model)
    path.write_bytes(write_model(model))


def _feed_images(name: str, images: Tensor) -> Iterator[dict[str, Any]]:
    yield from ({name: image[None].numpy()} for image in images)


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


CONTENDERS = (
    Contender(name="onnx-float", title="float", runtime="onnx", side="float", make=_float_maker("onnx")),
    Contender(name="onnx-ours", title="int8, this project", runtime="onnx", side="ours", make=_quantized_maker("onnx")),
    Contender(
        name="onnx-static",
        title="int8, quantize_static",
        runtime="onnx",
        side="peer",
        make=_quantize_static(False),
    ),
    Contender(
        name="onnx-static-reduced",
        title="int8, quantize_static with reduce_range",
        runtime="onnx",
        side="peer",
        make=_quantize_static(True),
    ),
    Contender(name="onnx-nncf", title="int8, NNCF post-training", runtime="onnx", side="peer", make=_quantize_nncf),
    Contender(name="xnnpack-float", title="float", runtime="xnnpack", side="float", make=_float_maker("xnnpack")),
    Contender(
        name="xnnpack-ours",
        title="int8, this project",
        runtime="xnnpack",
        side="ours",
        make=_quantized_maker("xnnpack"),
    ),
    Contender(name="xnnpack-stock", title="int8, stock recipe", runtime="xnnpack", side="peer", make=_stock_xnnpack),
    Contender(name="litert-float", title="float", runtime="litert", side="float", make=_float_maker("litert")),
    Contender(
        name="litert-ours", title="int8, this project", runtime="litert", side="ours", make=_quantized_maker("litert")
    ),
    Contender(
        name="litert-static",
        title="int8, ai-edge-quantizer static",
        runtime="litert",
        side="peer",
        make=_edge_static,
    ),
)


def installed() -> tuple[Contender, ...]:
    """Those whose runtime is installed."""

    def is_here(contender: Contender) -> bool:
        try:
            return bool(targets.get(contender.runtime))
        except targets.MissingBackend:
            return False

    return tuple(contender for contender in CONTENDERS if is_here(contender))


def path_of(contender: Contender, folder: Path) -> Path:
    """Where a contender's file lies among a network's."""
    return folder / f"{contender.name}{targets.get(contender.runtime).suffix}"


def write(contender: Contender, subject: Subject, folder: Path) -> None:
    """Make the file; what the quantizers say about themselves is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contender.make(subject, path_of(contender, folder))
