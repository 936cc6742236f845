"""Windows that slide over an image, the size of what they give, and how much of the image each position has seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from edgewise.measure.cost.trace import Operation, Trace, Value

Pair = tuple[float, float]
"""Something along height and along width."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The geometry of a convolution or a pooling, one number per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    ceil_mode: bool = False

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """floor((n + 2p − d(k − 1) − 1)/s) + 1 along every dimension (Dumoulin & Visin 2016, arXiv 1603.07285).

        With ``ceil_mode`` the division rounds up, less a window that would start in the padding after the image; a
        transposed convolution gives (n − 1)s − 2p + d(k − 1) + output padding + 1.
        """
        return tuple(self._along(i, n) for i, n in enumerate(size))

    def _along(self, i: int, n: int) -> int:
        stride, padding, span = self.stride[i], self.padding[i], self.dilation[i] * (self.kernel[i] - 1)
        if self.transposed:
            return (n - 1) * stride - 2 * padding + span + self.output_padding[i] + 1
        room = n + 2 * padding - span - 1
        if not self.ceil_mode:
            return room // stride + 1
        count = -(-room // stride) + 1
        return count - 1 if (count - 1) * stride >= n + padding else count


def checked_window(operation: Operation) -> Window | None:
    """The window of a convolution or pooling, checked against the shape it really gave; None for other operators."""
    geometry = _window_of(operation)
    if geometry is not None:
        image, rank = operation.inputs[0].shape, len(geometry.kernel)
        expected, real = geometry.output_size(image[-rank:]), operation.outputs[0].shape[-rank:]
        assert expected == real, f"{operation.name}: the output-size formula gives {expected}, the operator gave {real}"
    return geometry


def _window_of(operation: Operation) -> Window | None:
    arguments = operation.arguments
    if operation.name in {"convolution", "_convolution", "convolution_overrideable"}:
        kernel = arguments["weight"].shape[2:]
        rank = len(kernel)
        return Window(
            kernel=kernel,
            stride=_per_axis(arguments["stride"], rank),
            padding=_per_axis(arguments["padding"], rank),
            dilation=_per_axis(arguments["dilation"], rank),
            groups=arguments["groups"],
            transposed=arguments["transposed"],
            output_padding=_per_axis(arguments["output_padding"], rank),
        )
    if operation.name in _POOLINGS:
        rank = _POOLINGS[operation.name]
        kernel = _per_axis(arguments["kernel_size"], rank)
        return Window(
            kernel=kernel,
            stride=_per_axis(arguments["stride"] or kernel, rank),
            padding=_per_axis(arguments["padding"], rank),
            dilation=_per_axis(arguments.get("dilation", 1), rank),
            ceil_mode=arguments["ceil_mode"],
        )
    return None


_POOLINGS = {
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
}


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


@dataclass(frozen=True)
class Field:
    """What one position of a tensor has seen of the image, in image pixels along height and width."""

    size: Pair
    """Receptive field r."""
    jump: Pair
    """Distance j between what neighbouring positions are centred on: the product of the strides so far."""
    extent: tuple[int, int]
    """How many positions there are."""

    def through(self, taps: Pair, step: Pair, extent: tuple[int, int]) -> Field:
        """After an operator that reads ``taps`` positions in a row: r + (taps − 1)·j, and j·step between outputs."""
        size = tuple(r + (k - 1) * j for r, k, j in zip(self.size, taps, self.jump, strict=True))
        jump = tuple(j * s for j, s in zip(self.jump, step, strict=True))
        return Field((size[0], size[1]), (jump[0], jump[1]), extent)

    def everywhere(self) -> Field:
        """After an operator that reads every position at once: a pooling over the image, or a layer on it flattened."""
        height, width = self.extent
        return self.through((height, width), (height, width), (1, 1))


def receptive_fields(trace: Trace, input_shape: tuple[int, int, int]) -> list[Field | None]:
    """The receptive field of each operation's result, None where no image reaches it.

    r_out = r_in + (k − 1)·d·j, j_out = j_in·s (Araujo et al. 2019, Distill, "Computing receptive fields of
    convolutional neural networks"), the largest over the incoming paths, and not cut at the image's border. Attention,
    and any matrix product of two activations, sees the whole image. A normalisation's statistics are not counted, and
    reshaping is taken to leave positions where they are.
    """
    image = (input_shape[1], input_shape[2])
    fields = _Seen(trace, image)
    fields_seen: list[Field | None] = []
    for operation in trace.operations:
        incoming = [field for field in map(fields.through, operation.inputs) if field is not None]
        field = _field_after(operation, trace, _largest_field(incoming), image) if incoming else None
        if field is not None:
            fields.note(operation, field)
        fields_seen.append(field)
    return fields_seen


class _Seen:
    """The fields so far: of every storage as it was written, and of every view into it that has its own grid."""

    def __init__(self, trace: Trace, image: tuple[int, int]) -> None:
        self._whole = {trace.image: Field((1, 1), (1, 1), image)}
        self._views: dict[tuple[int, tuple[int, ...]], Field] = {}

    def through(self, value: Value) -> Field | None:
        return self._views.get((value.storage, value.shape), self._whole.get(value.storage))

    def note(self, operation: Operation, field: Field) -> None:
        for value in operation.outputs:
            self._views[value.storage, value.shape] = field
            if not operation.is_view:
                self._whole[value.storage] = field


def _largest_field(incoming: list[Field]) -> Field:
    """The largest field over the paths that meet, at the positions of the finest of them."""
    height, width = max(f.size[0] for f in incoming), max(f.size[1] for f in incoming)
    finest = max(incoming, key=lambda f: prod(f.extent))
    return Field((height, width), finest.jump, finest.extent)


def _field_after(operation: Operation, trace: Trace, field: Field, image: tuple[int, int]) -> Field:
    inputs, arguments = operation.inputs, operation.arguments
    if operation.name == "slice":
        return _slice_field(arguments, inputs[0].shape, operation.outputs[0].shape, field)
    if "_pad" in operation.name:
        return _pad_field(inputs[0].shape, operation.outputs[0].shape, field)
    if operation.is_view or operation.is_rounding:
        return field
    here = checked_window(operation)
    if here is not None and len(here.kernel) == 2:
        return _slide_window(here, _field_on_grid(field, inputs[0].shape), operation.outputs[0].shape)
    if operation.name.lstrip("_") in {"adaptive_avg_pool2d", "adaptive_max_pool2d"}:
        return _adaptive_field(_field_on_grid(field, inputs[0].shape), operation.outputs[0].shape)
    if operation.name.lstrip("_").startswith("upsample") or operation.name == "pixel_shuffle":
        return _enlarge_field(operation.name, _field_on_grid(field, inputs[0].shape), operation.outputs[0].shape)
    if operation.name in {"mean", "sum", "amax"} and _spans_image(arguments.get("dim"), inputs[0], field):
        return field.everywhere()
    if operation.macs and here is None:
        return _product_field(operation, trace, field, image)
    return field


def _slice_field(arguments: dict[str, Any], shape: tuple[int, ...], result: tuple[int, ...], field: Field) -> Field:
    """Every s-th position of an image [N, C, H, W] or [N, H, W, C]: neighbours are s times farther apart."""
    first = next((d for d in (2, 1) if len(shape) == 4 and shape[d : d + 2] == field.extent), None)
    along, step = arguments["dim"] % len(shape), arguments["step"]
    if first is None or along not in (first, first + 1):
        return field
    return field.through((1, 1), (step, 1) if along == first else (1, step), (result[first], result[first + 1]))


def _pad_field(shape: tuple[int, ...], result: tuple[int, ...], field: Field) -> Field:
    """A border around an image adds positions and moves none."""
    return Field(field.size, field.jump, (result[-2], result[-1])) if shape[-2:] == field.extent else field


def _field_on_grid(field: Field, shape: tuple[int, ...]) -> Field:
    """The field on the grid that the tensor really has: a reshape may have made it finer or coarser."""
    extent = (shape[-2], shape[-1])
    if extent == field.extent:
        return field
    jump = (field.jump[0] * field.extent[0] / extent[0], field.jump[1] * field.extent[1] / extent[1])
    return Field(field.size, jump, extent)


def _slide_window(window: Window, field: Field, shape: tuple[int, ...]) -> Field:
    extent = (shape[-2], shape[-1])
    spans = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    if not window.transposed:
        return field.through((spans[0], spans[1]), (window.stride[0], window.stride[1]), extent)
    taps = (ceil(spans[0] / window.stride[0]), ceil(spans[1] / window.stride[1]))
    return field.through(taps, (1 / window.stride[0], 1 / window.stride[1]), extent)


def _adaptive_field(field: Field, shape: tuple[int, ...]) -> Field:
    """Adaptive pooling of n positions to m: window i reads from floor(i·n/m) to ceil((i + 1)·n/m)."""
    extent = (shape[-2], shape[-1])
    taps = [max(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in zip(field.extent, extent, strict=True)]
    step = (field.extent[0] / extent[0], field.extent[1] / extent[1])
    return field.through((taps[0], taps[1]), step, extent)


def _enlarge_field(name: str, field: Field, shape: tuple[int, ...]) -> Field:
    extent = (shape[-2], shape[-1])
    taps = 4 if "bicubic" in name else 2 if "linear" in name else 1
    return field.through((taps, taps), (field.extent[0] / extent[0], field.extent[1] / extent[1]), extent)


def _spans_image(dims: list[int] | int | None, value: Value, field: Field) -> bool:
    """Whether a reduction over ``dims`` runs over every position: (H, W) of an image or H·W of a row of tokens."""
    if dims is None or dims == []:
        return True
    sizes = tuple(
        value.shape[d] for d in ((dims,) if isinstance(dims, int) else sorted(d % len(value.shape) for d in dims))
    )
    return sizes == field.extent or (len(value.shape) == 3 and sizes == (prod(field.extent),))


def _product_field(operation: Operation, trace: Trace, field: Field, image: tuple[int, int]) -> Field:
    active = [v for v in operation.inputs if v.storage in trace.activations]
    if len(active) > 1:
        return Field((max(field.size[0], image[0]), max(field.size[1], image[1])), field.jump, field.extent)
    [value] = active
    whole_sample = value.shape[0] == trace.batch and prod(value.shape) * value.itemsize == trace.nbytes[value.storage]
    return field.everywhere() if whole_sample and len(value.shape) == 2 else field
