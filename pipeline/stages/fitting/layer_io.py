"""What layers are given and answer on real images, and its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.stages.fitting.least_squares import Moments

_UNFOLDED_VALUES = 1 << 24


class Accumulator:
    """Adds up what one layer is given and what it is to answer, until its moments are asked for."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, positions: int, draw: torch.Generator) -> None:
        """``positions``: how many output positions of each batch are used, drawn by ``draw``."""
        self._layer, self._positions, self._draw = layer, positions, draw
        self._sums: _Sums | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs and wanted outputs of a batch, as the layer takes and gives them, the outputs of any number of channels."""
        for patches, outputs in _sample_patches(self._layer, x, y, self._positions, self._draw):
            rows = F.pad(patches.double(), (0, 1), value=1.0)
            answers = outputs.double()
            if self._sums is None:
                width, channels = rows.shape[1], answers.shape[1]
                self._sums = _Sums(
                    rows.new_zeros(width, width), rows.new_zeros(width, channels), rows.new_zeros(channels)
                )
            self._sums.patches.addmm_(rows.T, rows)
            self._sums.cross.addmm_(rows.T, answers)
            self._sums.squares.add_(answers.square().sum(0))

    def moments(self) -> Moments:
        """Of all that was added."""
        assert self._sums is not None
        return _moments(self._sums)


@dataclass
class _Sums:
    """Sums over positions; the patches have a one appended, so that the means come along."""

    patches: Tensor
    cross: Tensor
    squares: Tensor


def gather_moments(
    student: nn.Module, teacher: nn.Module, names: Iterable[str], batches: Iterable[Tensor], positions: int, seed: int
) -> dict[str, Moments]:
    """Moments of each named layer: patches as the ``student`` feeds them, outputs as the ``teacher`` answers.

    The two networks may be one; ``names`` are convolutions and linear layers in the teacher that run in evaluation.
    ``batches`` holds normalised images [B, C, H, W] where the networks lie. ``positions``: how many output positions,
    drawn at random, are used per layer and batch.
    """
    layers = list(names)
    draw = torch.Generator().manual_seed(seed)
    accumulators: dict[str, Accumulator] = {}
    for images in batches:
        answers = run_until_seen(teacher, layers, images)
        inputs = answers if student is teacher else run_until_seen(student, layers, images)
        for name in layers:
            layer = teacher.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            accumulators.setdefault(name, Accumulator(layer, positions, draw)).add(inputs[name][0], answers[name][1])
    return {name: sums.moments() for name, sums in accumulators.items()}


class Enough(Exception):
    """All that was asked for has been seen; the pass goes no further."""


def run_until_seen(model: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What the named modules were given and returned for ``images``, in order of execution.

    The network is run no further than the last of them. A module that did not run is not among the result.
    """
    remaining = set(names)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}

    def hear(name: str, args: tuple[Any, ...], output: Any) -> None:
        pairs[name] = args[0], output
        if len(pairs) == len(remaining):
            raise Enough

    with torch.no_grad(), suppress(Enough), listen_to_layers(model, remaining, hear):
        model(images)
    return pairs


@contextmanager
def capture_values(model: nn.Module, names: Iterable[str], what: str) -> Iterator[Mapping[str, Tensor]]:
    """While open: what the named modules were last given (``what`` is "input") or returned ("output")."""
    values: dict[str, Tensor] = {}

    def hear(name: str, args: tuple[Any, ...], output: Any) -> None:
        values[name] = args[0] if what == "input" else output

    with listen_to_layers(model, names, hear):
        yield values


@contextmanager
def listen_to_layers(
    model: nn.Module, names: Iterable[str], hear: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """While open, ``hear(name, arguments, output)`` is called whenever one of the named modules has run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, output: hear(name, args, output)

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def computes_as_declared(layer: nn.Conv2d | nn.Linear, inputs: Tensor, answered: Tensor) -> bool:
    """Whether a layer's own forward, which a subclass may replace, is what its attributes say: tried on what it was given."""
    if type(layer) in (nn.Conv2d, nn.Linear):
        return True
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    try:
        with torch.no_grad():
            declared = base.forward(layer, inputs)  # type: ignore[arg-type]
    except RuntimeError:  # a kernel larger than an input that the layer's own forward pads first
        return False
    return declared.shape == answered.shape and torch.allclose(declared, answered, rtol=1e-4, atol=1e-6)


def _sample_patches(
    layer: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor, positions: int, draw: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches [n, Cin·K] and outputs [n, Cout] at random positions of the images; memory stays bounded."""
    if isinstance(layer, nn.Linear):
        yield _choose_patches(x.flatten(0, -2), y.flatten(0, -2), positions / y.flatten(0, -2).shape[0], draw)
        return
    per_image = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1] * y.shape[2] * y.shape[3]
    step = max(1, _UNFOLDED_VALUES // per_image)
    share = positions / (x.shape[0] * y.shape[2] * y.shape[3])
    padding = explicit_padding(layer)
    assert padding is not None
    for part_x, part_y in zip(torch.split(x, step), torch.split(y, step), strict=True):
        columns = F.unfold(part_x, layer.kernel_size, layer.dilation, padding, layer.stride)
        patches = columns.transpose(1, 2).flatten(0, 1)
        yield _choose_patches(patches, part_y.flatten(2).transpose(1, 2).flatten(0, 1), share, draw)


def _choose_patches(patches: Tensor, outputs: Tensor, share: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    if share >= 1:
        return patches, outputs
    count = max(1, round(share * len(patches)))
    index = torch.randperm(len(patches), generator=draw)[:count].to(patches.device)
    return patches[index], outputs[index]


def _moments(sums: _Sums) -> Moments:
    count = sums.patches[-1, -1]
    mean_x, mean_y = sums.patches[-1, :-1] / count, sums.cross[-1] / count
    return Moments(
        mean_x=mean_x,
        mean_y=mean_y,
        cov_xx=sums.patches[:-1, :-1] / count - torch.outer(mean_x, mean_x),
        cov_xy=sums.cross[:-1] / count - torch.outer(mean_x, mean_y),
        var_y=(sums.squares / count - mean_y.square()).clamp_min(0),
    )


def explicit_padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Padding of a convolution in pixels, the same on both sides; None where it is not."""
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    if layer.padding == "valid":
        return 0, 0
    total = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
