"""The statistics of convolutions' inputs and outputs on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.separate.fit import Moments
from pipeline.separate.forms import explicit_padding

_UNFOLDED_VALUES = 1 << 24


@dataclass
class _Sums:
    """Sums over positions; the patches have a one appended, so that the means come along."""

    patches: Tensor
    cross: Tensor
    squares: Tensor


def gather(
    student: nn.Module, teacher: nn.Module, names: Iterable[str], batches: Iterable[Tensor], positions: int, seed: int
) -> dict[str, Moments]:
    """Moments of each named layer: patches as the ``student`` feeds them, outputs as the ``teacher`` answers.

    The two networks may be one; ``names`` are convolutions in the teacher. ``batches`` holds normalised images
    [B, C, H, W] where the networks lie. ``positions``: how many output positions, drawn at random, are used per layer
    and batch.
    """
    wanted = list(names)
    sums: dict[str, _Sums] = {}
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad(), captured(student, wanted, "input") as inputs, captured(teacher, wanted, "output") as outputs:
        for images in batches:
            teacher(images)
            if student is not teacher:
                student(images)
            for name in wanted:
                layer = teacher.get_submodule(name)
                assert isinstance(layer, nn.Conv2d)
                _add(sums, name, layer, inputs[name], outputs[name], positions, draw)
    return {name: _moments(found) for name, found in sums.items()}


@contextmanager
def captured(model: nn.Module, names: Iterable[str], what: str) -> Iterator[Mapping[str, Tensor]]:
    """While open: what the named modules were last given (``what`` is "input") or returned ("output")."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[name] = args[0] if what == "input" else output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _add(
    sums: dict[str, _Sums], name: str, layer: nn.Conv2d, x: Tensor, y: Tensor, positions: int, draw: torch.Generator
) -> None:
    for patches, outputs in _sampled(layer, x, y, positions, draw):
        rows = F.pad(patches.double(), (0, 1), value=1.0)
        answers = outputs.double()
        if name not in sums:
            width, channels = rows.shape[1], answers.shape[1]
            sums[name] = _Sums(rows.new_zeros(width, width), rows.new_zeros(width, channels), rows.new_zeros(channels))
        sums[name].patches.addmm_(rows.T, rows)
        sums[name].cross.addmm_(rows.T, answers)
        sums[name].squares.add_(answers.square().sum(0))


def _sampled(
    layer: nn.Conv2d, x: Tensor, y: Tensor, positions: int, draw: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches [n, Cin·K] and outputs [n, Cout] at random positions of the images; memory stays bounded."""
    per_image = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1] * y.shape[2] * y.shape[3]
    step = max(1, _UNFOLDED_VALUES // per_image)
    share = min(1.0, positions / (x.shape[0] * y.shape[2] * y.shape[3]))
    padding = explicit_padding(layer)
    assert padding is not None
    for part_x, part_y in zip(torch.split(x, step), torch.split(y, step), strict=True):
        unfolded = F.unfold(part_x, layer.kernel_size, layer.dilation, padding, layer.stride)
        patches = unfolded.transpose(1, 2).flatten(0, 1)
        outputs = part_y.flatten(2).transpose(1, 2).flatten(0, 1)
        if share < 1:
            count = max(1, round(share * len(patches)))
            chosen = torch.randperm(len(patches), generator=draw)[:count].to(patches.device)
            patches, outputs = patches[chosen], outputs[chosen]
        yield patches, outputs


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
