"""Separable approximations of a dense convolution, in closed form.

A dense kernel W[o, i, k] (k runs over the K = Kh·Kw positions) is replaced by ``rank`` products per input channel,

    W[o, i, k]  ≈  V[o, i, k] = Σ_r P[o, i, r] · D[i, r, k],

which is what a depthwise convolution D with ``rank`` filters per input channel followed by a pointwise convolution P
computes (Guo et al. 2018, Network Decoupling, arXiv 1808.05517, theorem 1: exact at rank K).

*The kernel fit* minimises ‖W − V‖². The input channels do not interact, so that each takes the truncated singular value
decomposition of its own matrix W[:, i, :] [Cout, K] (Eckart and Young 1936).

*The output fit* minimises E‖y − V·x − b‖² over the patches x [Cin·K] that the layer meets, with y what the dense layer
answers (the data-driven criterion of Jaderberg et al. 2014, arXiv 1405.3866, section 2.2, and of Zhang et al. 2015,
arXiv 1505.06798, for this factorisation). With S = Cov(x, x), C = Cov(x, y) and the bias eliminated (b = E y − V·E x):

* D fixed: with T the block-diagonal map from patches to depthwise outputs z = T'x, P solves the normal equations
  (T'ST) P' = T'C, a linear least squares problem per output channel;
* P fixed: D solves Σ_js (P'P)[ir, js] · S[ik, jl] · D[js, l] = Σ_o P[o, ir] · C[ik, o], linear too.

The two are solved in turn, starting from the kernel fit. Each is damped towards the values it had (a proximal step,
which also holds values that the data say nothing of), so that the error never rises. Only the moments S, C and the
means enter, so that the data are passed through once for any number of fits. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgewise.stages.fitting.least_squares import Moments, solve_damped

_LARGEST_SYSTEM = 6000


@dataclass(frozen=True)
class Factors:
    """A separable kernel and its bias."""

    depthwise: Tensor
    """[Cin, rank, K]"""
    pointwise: Tensor
    """[Cout, Cin, rank]"""
    bias: Tensor
    """[Cout]"""

    def kernel(self) -> Tensor:
        """The dense kernel they stand for, [Cout, Cin, K]."""
        return torch.einsum("oir,irk->oik", self.pointwise, self.depthwise)


def kernel_fit(weight: Tensor, bias: Tensor, rank: int) -> Factors:
    """Best separable approximation of ``weight`` [Cout, Cin, Kh, Kw] in the sum of squares; ``bias`` [Cout] is kept."""
    matrices = weight.double().flatten(2).transpose(0, 1)  # [Cin, Cout, K]
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    terms = min(rank, values.shape[1])
    root = values[:, :terms].sqrt()
    depthwise = weight.new_zeros(matrices.shape[0], rank, matrices.shape[2], dtype=torch.float64)
    pointwise = weight.new_zeros(matrices.shape[1], matrices.shape[0], rank, dtype=torch.float64)
    depthwise[:, :terms] = root[:, :, None] * right[:, :terms]
    pointwise[:, :, :terms] = (left[:, :, :terms] * root[:, None, :]).transpose(0, 1)
    return Factors(depthwise, pointwise, bias.double())


def output_fit(start: Factors, moments: Moments, sweeps: int) -> Factors:
    """Factors that reproduce the layer's outputs best: pointwise, then ``sweeps`` times depthwise and pointwise.

    The depthwise half is left out where its system would be larger than 6,000 unknowns.
    """
    factors = _fit_pointwise(start, moments)
    for _ in range(sweeps if start.depthwise.numel() <= _LARGEST_SYSTEM else 0):
        factors = _fit_pointwise(_fit_depthwise(factors, moments), moments)
    return _even_variance(factors, moments)


def _fit_pointwise(factors: Factors, moments: Moments) -> Factors:
    cov_zx = _filter_patches(factors.depthwise, moments.cov_xx)
    cov_zz = _filter_patches(factors.depthwise, cov_zx.T)
    cov_zy = _filter_patches(factors.depthwise, moments.cov_xy)
    old = factors.pointwise.flatten(1).T  # [Cin·rank, Cout]
    new = old + solve_damped(cov_zz, cov_zy - cov_zz @ old)
    return _with_bias(replace(factors, pointwise=new.T.reshape(factors.pointwise.shape)), moments)


def _filter_patches(depthwise: Tensor, patches: Tensor) -> Tensor:
    """What the depthwise filters make of values per patch element: [Cin·K, n] -> [Cin·rank, n]."""
    by_channel = patches.reshape(depthwise.shape[0], depthwise.shape[2], -1)
    return (depthwise @ by_channel).flatten(0, 1)


def _fit_depthwise(factors: Factors, moments: Moments) -> Factors:
    channels, rank, positions = factors.depthwise.shape
    pointwise = factors.pointwise.flatten(1)
    outer = (pointwise.T @ pointwise).reshape(channels, rank, 1, channels, rank, 1)
    inner = moments.cov_xx.reshape(channels, 1, positions, channels, 1, positions)
    system = (outer * inner).reshape(factors.depthwise.numel(), -1)
    target = torch.einsum("iko,oir->irk", moments.cov_xy.reshape(channels, positions, -1), factors.pointwise)
    old = factors.depthwise.flatten()
    new = old + solve_damped(system, (target.flatten() - system @ old)[:, None])[:, 0]
    return _with_bias(replace(factors, depthwise=new.reshape(factors.depthwise.shape)), moments)


def _with_bias(factors: Factors, moments: Moments) -> Factors:
    return replace(factors, bias=moments.mean_y - factors.kernel().flatten(1) @ moments.mean_x)


def _even_variance(factors: Factors, moments: Moments) -> Factors:
    """The same kernel with depthwise outputs of equal variance, so that one 8-bit range serves them all."""
    channels, _, positions = factors.depthwise.shape
    blocks = moments.cov_xx.reshape(channels, positions, channels, positions).diagonal(dim1=0, dim2=2)  # [K, K, Cin]
    variance = torch.einsum("irk,kli,irl->ir", factors.depthwise, blocks, factors.depthwise)
    scale = torch.where(variance > 0, variance.clamp_min(0).sqrt(), 1.0)
    return replace(factors, depthwise=factors.depthwise / scale[:, :, None], pointwise=factors.pointwise * scale)
