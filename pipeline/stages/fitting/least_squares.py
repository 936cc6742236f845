"""Least squares of a layer's outputs: all that a fit needs to know of the data are means and covariances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Means and covariances of a layer's input patches x (D = Cin·K values) and of its wanted outputs y (Cout)."""

    mean_x: Tensor
    """[D]"""
    mean_y: Tensor
    """[Cout]"""
    cov_xx: Tensor
    """[D, D]"""
    cov_xy: Tensor
    """[D, Cout]"""
    var_y: Tensor
    """[Cout]"""

    def scaled(self, scale: Tensor) -> Moments:
        """The same for outputs multiplied by ``scale`` [Cout]."""
        return replace(self, mean_y=self.mean_y * scale, cov_xy=self.cov_xy * scale, var_y=self.var_y * scale.square())

    def uncentred(self) -> Moments:
        """Second moments about 0 in the place of covariances, for layers without a bias."""
        return Moments(
            mean_x=torch.zeros_like(self.mean_x),
            mean_y=torch.zeros_like(self.mean_y),
            cov_xx=self.cov_xx + torch.outer(self.mean_x, self.mean_x),
            cov_xy=self.cov_xy + torch.outer(self.mean_x, self.mean_y),
            var_y=self.var_y + self.mean_y.square(),
        )


class Fitted(Protocol):
    """A kernel in a cheaper form."""

    @property
    def bias(self) -> Tensor:
        """[Cout]"""

    def kernel(self) -> Tensor:
        """The dense kernel it stands for, [Cout, Cin, K]."""


def relative_error(fitted: Fitted, moments: Moments) -> float:
    """Relative error of the outputs, the root of E‖y − V·x − b‖² / E‖y − E y‖²: 0 exact, 1 as bad as a constant."""
    kernel = fitted.kernel().flatten(1).T  # [D, Cout]
    spread = moments.var_y.sum() - 2 * (kernel * moments.cov_xy).sum() + (kernel * (moments.cov_xx @ kernel)).sum()
    offset = moments.mean_y - moments.mean_x @ kernel - fitted.bias
    energy = moments.var_y.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(((spread.clamp_min(0) + offset.square().sum()) / energy).sqrt())


def solve_damped(system: Tensor, right: Tensor, damping: float = 1e-7) -> Tensor:
    """Solution of a symmetric positive semidefinite system, each unknown damped in proportion to its own diagonal."""
    diagonal = system.diagonal()
    floor = diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    regularized = system + torch.diag(damping * (diagonal + floor))
    return torch.cholesky_solve(right, torch.linalg.cholesky(regularized))
