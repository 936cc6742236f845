"""New forms put in the place of dense layers, and filled with what was fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewise.network import surgery
from edgewise.stages.fitting.batch_norms import put_bias
from edgewise.stages.fitting.layer_io import gather_moments
from edgewise.stages.fitting.least_squares import Fitted, Moments, relative_error
from edgewise.stages.separate.forms import Form, get_convolution

_BYTES_AT_ONCE = 1 << 30

Method = Callable[[nn.Conv2d, int, Moments], Fitted]
"""Fits a layer, with so many channels between the parts, to its moments."""


@dataclass(frozen=True, kw_only=True)
class Swap:
    """How layers of one network are replaced."""

    form: Form
    method: Method
    middles: Mapping[str, int]
    """Layer -> channels between the parts of what replaces it."""
    norms: Mapping[str, str]
    """Layer -> the batch norm that alone reads it."""
    positions: int
    """Output positions per batch that a fit looks at."""
    seed: int

    def done(self, model: nn.Module, names: Iterable[str]) -> nn.Module:
        """A copy of ``model`` with freshly initialised new forms at ``names``.

        A layer has a bias where the dense one had one or where no batch norm takes it up.
        """
        modules = {}
        for name in names:
            layer = get_convolution(model, name)
            bias = layer.bias is not None or name not in self.norms
            modules[name] = self.form.describe(layer, self.middles[name], bias)
        device, modes = next(model.parameters()).device, model.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return surgery.apply(model, surgery.Replace(modules)).to(device).train(modes)

    def alone(
        self, model: nn.Module, names: Sequence[str], fitting: Sequence[Tensor], judging: Sequence[Tensor]
    ) -> dict[str, tuple[Fitted, float]]:
        """The fit of each named layer, every one alone in the dense ``model``, and its relative output error.

        Fitted on the batches ``fitting``, judged on ``judging``: normalised images where the network lies.
        """
        fits = {}
        for group in _group_names(model, names):
            fitting_moments = gather_moments(model, model, group, fitting, self.positions, self.seed)
            judging_moments = gather_moments(model, model, group, judging, self.positions, self.seed)
            for name in group:
                result = self.method(get_convolution(model, name), self.middles[name], fitting_moments[name])
                fits[name] = result, relative_error(result, judging_moments[name])
        return fits

    def fit(self, student: nn.Module, teacher: nn.Module, name: str, batches: Sequence[Tensor]) -> None:
        """Fit the new form at ``name`` in ``student``, in place.

        It is fitted to the teacher's outputs on the inputs that the student gives it with the layers before it already
        replaced, so that it makes up for their errors (the asymmetric reconstruction of Zhang et al. 2015,
        arXiv 1505.06798, section 2.3).
        """
        moments = gather_moments(student, teacher, [name], batches, self.positions, self.seed)[name]
        self.fill(student, name, self.method(get_convolution(teacher, name), self.middles[name], moments))

    @torch.no_grad()
    def fill(self, student: nn.Module, name: str, fitted: Fitted) -> None:
        """Write what was fitted into ``student``; a bias without a place there moves into the batch norm."""
        norm = student.get_submodule(self.norms[name]) if name in self.norms else None
        put_bias(self.form.fill(student.get_submodule(name), fitted), norm, fitted.bias)


def _group_names(model: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Names in runs whose moments fit in memory together."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = 8 * get_convolution(model, name).weight[0].numel() ** 2
        if size > room:
            groups.append([])
            room = _BYTES_AT_ONCE
        groups[-1].append(name)
        room -= size
    return groups
