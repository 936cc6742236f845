"""A dense kernel as a chain of smaller convolutions without an activation between them.

Two convolutions in a row, A with ``middle`` outputs and then B, are one whose kernel is their full convolution summed
over the channels between,

    V[o, i, s] = Σ_m Σ_{q + r = s} B[o, m, q] · A[m, i, r],

so that a Kh x 1 kernel and a 1 x Kw one make a Kh x Kw kernel, and n kernels of 3 x 3 one of (2n + 1) x (2n + 1) with
the same receptive field (Simonyan and Zisserman 2014, arXiv 1409.1556, section 2.3: two 3 x 3 take 18·C² weights where
one 5 x 5 takes 25·C²). The equality is exact, borders included, when the whole zero padding stands before the first
(across: before each in its own direction) and the whole stride in the last: zeros convolved stay zeros.

*The spatial kernel fit* minimises ‖W − V‖² in closed form: with rows (o, kw) and columns (i, kh) the kernel is a matrix,
its best approximation of rank ``middle`` the truncated singular value decomposition (Jaderberg, Vedaldi, Zisserman
2014, arXiv 1405.3866, section 2.1, scheme 2; Eckart and Young 1936).

*The stacked kernel fit* has no closed form. It starts from the 3 x 3 middle of the kernel, taken by its leading output
directions, with centred unit kernels behind, and goes downhill by L-BFGS (Liu and Nocedal 1989) on the same sum of
squares, which is a polynomial in the kernels.

*The output fit* goes downhill from there on E‖y − V·x − b‖², the data-driven criterion of Jaderberg et al. (section
2.2), as a function of all kernels at once: tr V·S·V' − 2 tr V·C with the moments of ``fit``. L-BFGS with a line search
that satisfies the strong Wolfe conditions never rises. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.stages.fitting.least_squares import Moments

_STEPS_PER_SWEEP = 40
_KERNEL_STEPS = 200


@dataclass(frozen=True)
class Chain:
    """The kernels of a chain, and the bias of its last."""

    kernels: tuple[Tensor, ...]
    """[middle, Cin, Kh, Kw], …, [Cout, middle, Kh, Kw]."""
    bias: Tensor
    """[Cout]"""

    def kernel(self) -> Tensor:
        """The dense kernel they stand for, [Cout, Cin, K]."""
        return reduce(compose_kernels, self.kernels).flatten(2)


def compose_kernels(first: Tensor, then: Tensor) -> Tensor:
    """The kernel of two convolutions in a row: [M, I, h, w] and [O, M, h', w'] -> [O, I, h + h' − 1, w + w' − 1]."""
    padding = then.shape[2] - 1, then.shape[3] - 1
    return F.conv2d(first.transpose(0, 1), then.flip(2, 3), padding=padding).transpose(0, 1)


def spatial_fit(weight: Tensor, bias: Tensor, middle: int) -> Chain:
    """The closest Kh x 1 and 1 x Kw kernels to ``weight`` [Cout, Cin, Kh, Kw] in the sum of squares."""
    outputs, inputs, height, width = weight.shape
    matrix = weight.double().permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:middle].sqrt()
    first = (root[:, None] * right[:middle]).reshape(-1, inputs, height, 1)
    then = (left[:, :middle] * root).reshape(outputs, width, -1).transpose(1, 2)[:, :, None, :]
    return Chain((first, then.contiguous()), bias.double())


def stacked_fit(weight: Tensor, bias: Tensor, middle: int) -> Chain:
    """3 x 3 kernels whose composition comes close to the odd square ``weight`` [Cout, Cin, K, K]."""
    target = weight.double()
    energy = target.square().sum().clamp_min(torch.finfo(torch.float64).tiny)

    def distance(kernel: Tensor) -> Tensor:
        return (kernel - target).square().sum() / energy

    return Chain(_descend_kernels(_initial_kernels(target, middle), distance, _KERNEL_STEPS), bias.double())


def output_fit(start: Chain, moments: Moments, sweeps: int) -> Chain:
    """The chain that reproduces the layer's outputs best, found from ``start`` in 40 steps of L-BFGS a sweep."""
    energy = moments.var_y.sum().clamp_min(torch.finfo(torch.float64).tiny)

    def distance(kernel: Tensor) -> Tensor:
        flat = kernel.flatten(1)
        return ((flat * (flat @ moments.cov_xx)).sum() - 2 * (flat.T * moments.cov_xy).sum()) / energy

    kernels = _descend_kernels(_even_variance(start.kernels, moments), distance, sweeps * _STEPS_PER_SWEEP)
    chain = Chain(_even_variance(kernels, moments), start.bias)
    return Chain(chain.kernels, moments.mean_y - chain.kernel().flatten(1) @ moments.mean_x)


def _initial_kernels(weight: Tensor, middle: int) -> tuple[Tensor, ...]:
    outputs, inputs, size, _ = weight.shape
    edge = (size - 3) // 2
    centre = weight[:, :, edge : edge + 3, edge : edge + 3]
    left, values, right = torch.linalg.svd(centre.flatten(1), full_matrices=False)
    terms = min(middle, len(values))
    root = values[:terms].sqrt()
    draw = torch.Generator().manual_seed(0)
    # Directions that the middle of the kernel leaves empty start small and not at 0, where their slope would vanish.
    first = 0.01 * torch.randn(middle, inputs, 3, 3, generator=draw, dtype=torch.float64) * weight.std()
    first[:terms] = (root[:, None] * right[:terms]).reshape(terms, inputs, 3, 3)
    between = _centre_columns(torch.eye(middle, dtype=torch.float64))
    last = torch.zeros(outputs, middle, dtype=torch.float64)
    last[:, :terms] = left[:, :terms] * root
    spread = 0.01 * torch.randn(outputs, middle, 3, 3, generator=draw, dtype=torch.float64) * weight.std()
    kernels = (first, *[between] * (size // 2 - 2), _centre_columns(last) + spread)
    return tuple(kernel.to(weight.device) for kernel in kernels)


def _centre_columns(matrix: Tensor) -> Tensor:
    return F.pad(matrix[:, :, None, None], (1, 1, 1, 1))


def _descend_kernels(kernels: Sequence[Tensor], distance: Callable[[Tensor], Tensor], steps: int) -> tuple[Tensor, ...]:
    """The kernels after so many steps of L-BFGS on the distance of their composition."""
    if not steps:
        return tuple(kernels)
    shapes = [kernel.shape for kernel in kernels]
    flat = torch.cat([kernel.flatten() for kernel in kernels]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [flat], max_iter=steps, max_eval=2 * steps, history_size=20, tolerance_grad=1e-12, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = distance(reduce(compose_kernels, _split_flat(flat, shapes)))
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return _split_flat(flat.detach(), shapes)


def _split_flat(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """The kernels that lie one after the other in ``flat``."""
    pieces = torch.split(flat, [shape.numel() for shape in shapes])
    return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))


def _even_variance(kernels: Sequence[Tensor], moments: Moments) -> tuple[Tensor, ...]:
    """The same chain with outputs of equal variance after each part but the last, so that one 8-bit range serves them.

    The variance is that in the middle of the patch, which the moments hold.
    """
    inputs = kernels[0].shape[1]
    whole = reduce(compose_kernels, kernels)
    covariance = moments.cov_xx.reshape(inputs, *whole.shape[2:], inputs, *whole.shape[2:])
    kernels_scaled = list(kernels)
    for index in range(len(kernels_scaled) - 1):
        so_far = reduce(compose_kernels, kernels_scaled[: index + 1])
        height, width = so_far.shape[2:]
        top, start = (whole.shape[2] - height) // 2, (whole.shape[3] - width) // 2
        rows_in, columns_in = slice(top, top + height), slice(start, start + width)
        inside = covariance[:, rows_in, columns_in, :, rows_in, columns_in].reshape(so_far[0].numel(), -1)
        rows = so_far.flatten(1)
        variance = ((rows @ inside) * rows).sum(1)
        scale = torch.where(variance > 0, variance.clamp_min(0).sqrt(), 1.0)
        kernels_scaled[index] = kernels_scaled[index] / scale[:, None, None, None]
        kernels_scaled[index + 1] = kernels_scaled[index + 1] * scale[None, :, None, None]
    return tuple(kernels_scaled)
