"""What a package is fed: an array or an image, of one size, of several, or of any in a range."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgewise.targets import Packaging, TargetError
from edgewise.targets._program import open_sides
from edgewise.targets._quiet import LEAF_SPEC, quiet_loggers

LABELS = "labels"
"""Key of the package's metadata that holds the class names, a JSON list in the order of the outputs."""

_MOVES = (torch.ops.aten.permute_copy.default, torch.ops.aten.permute.default)

Bounds = tuple[tuple[int, int], tuple[int, int]]
"""Smallest and largest height, smallest and largest width."""


@dataclass(frozen=True)
class Fed:
    """What a package's description says of its input."""

    image: bool
    """Whether it is an image (bytes, in Core ML's own pixel formats) and not an array of floats."""
    size: tuple[int, int]
    """The default height and width."""
    accepted: tuple[Bounds, ...]
    """Sizes that lie within any of these are taken; empty where the input is no image at all."""

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether the package takes images of this height and width."""
        return any(h[0] <= size[0] <= h[1] and w[0] <= size[1] <= w[1] for h, w in self.accepted)

    def pixels(self, images: Tensor) -> Tensor:
        """What the program's input is for ``images``: bytes [N, H, W, C] as floats [N, C, H, W], floats as they are."""
        if not self.accepted:
            return images
        dtype = torch.uint8 if self.image else torch.float32
        size = tuple(images.shape[1:3] if self.image else images.shape[2:])
        if images.dtype != dtype or images.dim() != 4 or not self.takes((size[0], size[1])):
            layout = "[N, H, W, C]" if self.image else "[N, C, H, W]"
            raise ValueError(
                f"wanted {dtype} {layout} at {', '.join(map(_bounds_words, self.accepted))}, found {images.dtype} {list(images.shape)}"
            )
        return images.permute(0, 3, 1, 2).float() if self.image else images


def _bounds_words(bounds: Bounds) -> str:
    (low, high), (narrow, wide) = bounds
    return f"{low}×{narrow}" if (low, narrow) == (high, wide) else f"{low}×{narrow} to {high}×{wide}"


def read_input(description: Any) -> Fed:
    """Read a ``FeatureDescription`` of the specification."""
    kind = description.type
    if kind.WhichOneof("Type") == "imageType":
        return _image_input(kind.imageType)
    array = kind.multiArrayType
    if len(array.shape) != 4:
        return Fed(False, (1, 1), ())
    height, width = (int(side) for side in array.shape[2:4])
    bounds: tuple[Bounds, ...] = (((height, height), (width, width)),)
    if array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        shapes = [tuple(map(int, entry.shape)) for entry in array.enumeratedShapes.shapes]
        bounds = tuple(((shape[2], shape[2]), (shape[3], shape[3])) for shape in shapes)
    elif array.WhichOneof("ShapeFlexibility") == "shapeRange":
        bounds = (_side_bounds(*array.shapeRange.sizeRanges[2:4]),)
    return Fed(False, (height, width), bounds)


def _image_input(image: Any) -> Fed:
    bounds: tuple[Bounds, ...] = (((image.height, image.height), (image.width, image.width)),)
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        bounds = tuple(((s.height, s.height), (s.width, s.width)) for s in image.enumeratedSizes.sizes)
    elif image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        bounds = (_side_bounds(image.imageSizeRange.heightRange, image.imageSizeRange.widthRange),)
    return Fed(True, (int(image.height), int(image.width)), bounds)


def _side_bounds(height: Any, width: Any) -> Bounds:
    return (int(height.lowerBound), int(height.upperBound)), (int(width.lowerBound), int(width.upperBound))


def takes_bytes(program: ExportedProgram) -> bool:
    """Whether ``program``'s input is a camera's bytes."""
    (example,) = program.example_inputs[0]
    return bool(example.dtype is torch.uint8)


def from_pixels(program: ExportedProgram) -> ExportedProgram:
    """A program of bytes [1, H, W, C] from where these are floats [1, C, H, W], 0 to 255: as Core ML hands an image over."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    mover = next((node for node in module.graph.nodes if node.target in _MOVES), None)
    cast: Any = mover.args[0] if mover is not None else None
    if mover is None or cast.args[0] is not image:
        raise TargetError("wanted bytes that are cast to float32 and moved to [1, C, H, W], found another beginning")
    mover.replace_all_uses_with(image, delete_user_cb=lambda reader: reader is not cast)
    for node in [mover, *reversed([user for user in image.users if "_assert_tensor" in str(user.target)]), cast]:
        module.graph.erase_node(node)
    module = GraphModule(module, module.graph)  # without the hook that wants the program's own input
    (example,) = program.example_inputs[0]
    open_ = {axis + 1: side for axis, side in (open_sides(program) or {}).items()}
    with quiet_loggers(messages=(LEAF_SPEC,)):
        return torch.export.export(
            module, (torch.zeros(example.permute(0, 3, 1, 2).shape),), dynamic_shapes=(open_,) if open_ else None
        )


def inputs(coremltools: ModuleType, program: ExportedProgram, packaging: Packaging, image: bool) -> list[Any] | None:
    """The input's type for the converter; None: what the program says. Raises TargetError for an image of odd channels."""
    (example,) = program.example_inputs[0]
    shape = _shape(coremltools, packaging, tuple(example.shape))
    if not image:
        return None if shape is None else [coremltools.TensorType(shape=shape)]
    layouts = {1: coremltools.colorlayout.GRAYSCALE, 3: coremltools.colorlayout.RGB}
    if example.shape[1] not in layouts:
        raise TargetError(
            f"target 'coreml': an image has 1 or 3 channels, found {example.shape[1]}; leave --feed bytes out for it"
        )
    return [coremltools.ImageType(shape=shape or tuple(example.shape), color_layout=layouts[example.shape[1]])]


def _shape(coremltools: ModuleType, packaging: Packaging, example: tuple[int, ...]) -> Any:
    sizes = packaging.sizes
    if sizes is None or sizes.kind == "fixed":
        return None
    batch, channels = example[:2]
    if sizes.kind == "enumerated":
        shapes = [(batch, channels, *size) for size in sizes.choices]
        return coremltools.EnumeratedShapes(shapes=shapes, default=shapes[0])
    sides = [
        low if low == high else coremltools.RangeDim(lower_bound=low, upper_bound=high, default=main)
        for (low, high), main in zip((sizes.heights, sizes.widths), sizes.choices[0], strict=True)
    ]
    return coremltools.Shape(shape=(batch, channels, *sides))


def classes(coremltools: ModuleType, program: ExportedProgram, packaging: Packaging) -> Any:
    """The converter's setting for a classifier: where the program ends in a softmax and every class has its own name."""
    (output,) = program.graph.output_node().args[0]
    labels = packaging.labels
    ends = isinstance(output, Node) and "softmax" in str(output.target)
    return coremltools.ClassifierConfig(list(labels)) if ends and labels and len(set(labels)) == len(labels) else None


def metadata(packaging: Packaging) -> dict[str, str]:
    """What the package's metadata holds: the labels, and what the packaging adds."""
    labels = {LABELS: json.dumps(packaging.labels, ensure_ascii=False)} if packaging.labels else {}
    return labels | dict(packaging.metadata)
