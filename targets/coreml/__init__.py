"""Core ML packages (ML Program, iOS 16 to 18) for Apple devices; evaluated by a reference off macOS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.targets import (
    COMMON_OPERATORS,
    EVERY_SIZE,
    GATES,
    PRODUCTS,
    USUAL,
    Artifact,
    Grid,
    Inside,
    Packaging,
    Runner,
    Target,
)
from edgewise.targets._quantizer import int8_quantizer
from edgewise.targets.coreml._precisions import DEPLOYMENT_TARGETS, PALETTE_BITS, PRECISIONS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def _export(program: ExportedProgram, path: Path, packaging: Packaging = USUAL) -> Artifact:
    from edgewise.targets.coreml._lowering import export

    return export(program, path, packaging)


def _reference(path: Path) -> Runner:
    """Raises TargetError for a package that is not whole, and for operators the evaluation does not know."""
    from edgewise.targets.coreml._islands import integer_values
    from edgewise.targets.coreml._mil import Reference, read_program

    program = read_program(path)
    return Reference(program, unrounded=integer_values(program))


def _inside(path: Path, program: ExportedProgram, images: Tensor) -> Inside:
    from edgewise.targets._program import for_inference
    from edgewise.targets.coreml._inside import inside_values

    return inside_values(path, for_inference(program), images)


def name_tensors(path: Path) -> tuple[str, str]:
    """What the package calls its input and its output. Raises TargetError for a package that is not whole."""
    from edgewise.targets.coreml._mil import read_program

    program = read_program(path)
    return program.input.name, program.output


class _Device:
    """Core ML itself, which exists on macOS only and takes one image at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        """``threads`` is Core ML's own affair: it offers no such setting."""
        import coremltools

        self._model = coremltools.models.MLModel(str(path))
        description = self._model.get_spec().description
        self._input = description.input[0].name
        self._output = description.predictedProbabilitiesName or description.output[0].name
        self._image = description.input[0].type.WhichOneof("Type") == "imageType"
        self._labels = json.loads(description.metadata.userDefined.get("labels", "[]"))

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        return torch.cat([torch.as_tensor(self._answer(image)).float().reshape(1, -1) for image in images])

    def _answer(self, image: Tensor) -> Any:
        """A classifier answers with a probability for each name; they are put into the order of the outputs."""
        picture: Any = image[None].numpy()
        if self._image:
            from PIL import Image

            picture = Image.fromarray(image.squeeze(2).numpy())
        answer = self._model.predict({self._input: picture})[self._output]
        return [answer[label] for label in self._labels] if isinstance(answer, dict) else answer


TARGET = Target(
    name="coreml",
    summary="Core ML ML Program (.mlpackage) for iOS 16 to 18: float, W8A8 int8, int8 or palettized weights",
    suffix=".mlpackage",
    extra="coreml",
    needs=("coremltools",),
    grids=tuple(
        Grid(weight_bits=bits, symmetric_activations=symmetric, operators=COMMON_OPERATORS | GATES | PRODUCTS)
        for symmetric in (False, True)
        for bits in (8, 7)
    ),
    quantizer=int8_quantizer,
    export=_export,
    load=_Device if sys.platform == "darwin" else None,
    reference=_reference,
    precisions=PRECISIONS,
    one_size=frozenset({"int8-weights"}),
    versions=DEPLOYMENT_TARGETS,
    since=(("int8", "iOS17"),),
    palette_bits=PALETTE_BITS,
    inside=_inside,
    tensors=name_tensors,
    sizes=EVERY_SIZE,
    feeds=frozenset({"normalised", "bytes"}),
)
