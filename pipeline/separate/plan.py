"""Which convolutions a separable pair could replace, at what cost, and the verdict on each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A convolution with a kernel larger than one pixel, and what became of it."""

    name: str
    shape: str
    """Channels, kernel, stride and dilation, for people."""
    dense_macs: int
    """Multiply-accumulates of the layer for one image."""
    separable_macs: int
    """The same of the separable pair that would replace it."""
    input_shape: tuple[int, ...] = ()
    """Of one image's input to the layer, [1, C, H, W]."""
    error: float | None = None
    """Relative error of the replaced layer's outputs on calibration images; None: not fitted."""
    dense_ms: float | None = None
    """Time of the layer alone on the declared runtime; None: not measured."""
    separable_ms: float | None = None
    accepted: bool = False
    reason: str = ""

    @property
    def macs_saved(self) -> int:
        """Negative where the pair takes more."""
        return self.dense_macs - self.separable_macs

    def line(self) -> str:
        """One line for the person watching."""
        parts = [f"{self.name} ({self.shape})", "replaced" if self.accepted else "stays dense"]
        if self.error is not None:
            parts.append(f"error {self.error:.3f}")
        if self.dense_ms is not None and self.separable_ms is not None:
            parts.append(f"{self.dense_ms:.3f} to {self.separable_ms:.3f} ms")
        parts.append(f"{self.dense_macs:,} to {self.separable_macs:,} MACs")
        return ": ".join(parts[:2]) + ", " + ", ".join(parts[2:]) + (f"; {self.reason}" if self.reason else "")


def survey(model: nn.Module, images: Tensor, rank: int) -> list[Candidate]:
    """Every spatial convolution that is not depthwise, in order of execution; those that cannot be replaced carry the
    reason. ``images`` are fed to ``model``, which must be in evaluation mode."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def listen(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.setdefault(name, []).append((args[0], output))

        return hook

    spatial = {name: module for name, module in model.named_modules() if _is_spatial(module)}
    hooks = [module.register_forward_hook(listen(name)) for name, module in spatial.items()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [_candidate(name, spatial[name], passes, rank) for name, passes in calls.items()]


def judge(
    candidates: Iterable[Candidate],
    *,
    layers: Iterable[str] | None,
    keep: Iterable[str],
    max_error: float,
    max_layers: int | None,
) -> tuple[Candidate, ...]:
    """The candidates with a verdict each, in their order.

    A candidate already refused keeps its reason. Of the others those named in ``layers`` (None: all) and not in
    ``keep``, that save MACs, err by at most ``max_error`` and are faster where they were timed are accepted; where
    ``max_layers`` bounds their number, those with the least error per MAC saved.
    """
    found = [_refused(c, layers, keep, max_error) for c in candidates]
    open_ = sorted((c for c in found if not c.reason), key=lambda c: (_cost(c), c.name))
    chosen = {c.name for c in open_[:max_layers]}
    return tuple(_verdict(c, c.name in chosen, max_layers) for c in found)


def check_names(wanted: Iterable[str], candidates: Iterable[Candidate], field: str) -> None:
    """Raise RequestError for a name that is no spatial convolution of the network."""
    known = [c.name for c in candidates]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            choices = ", ".join(known) or "none"
            raise RequestError(f"{field} names {name!r}, no spatial convolution here.{hint} There are: {choices}")


def _is_spatial(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
        return False
    return not (module.groups == module.in_channels and module.groups > 1)


def _candidate(name: str, layer: nn.Module, passes: list[tuple[Tensor, Tensor]], rank: int) -> Candidate:
    assert isinstance(layer, nn.Conv2d)
    height, width = layer.kernel_size
    given, output = passes[0]
    pixels = output.shape[2] * output.shape[3]
    middle = layer.in_channels * rank
    dense = pixels * height * width * layer.in_channels * layer.out_channels // layer.groups
    return Candidate(
        name=name,
        shape=_shape(layer),
        dense_macs=dense * len(passes),
        separable_macs=pixels * middle * (height * width + layer.out_channels) * len(passes),
        input_shape=(1, *given.shape[1:]),
        reason=_obstacle(layer, len(passes)),
    )


def _shape(layer: nn.Conv2d) -> str:
    text = f"{layer.in_channels} to {layer.out_channels}, {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    if max(layer.stride) > 1:
        text += f", stride {layer.stride[0]}"
    return text + (f", dilation {layer.dilation[0]}" if max(layer.dilation) > 1 else "")


def _obstacle(layer: nn.Conv2d, calls: int) -> str:
    if type(layer) is not nn.Conv2d:
        return f"it is a {type(layer).__name__}, whose forward may do more than a convolution"
    if layer.groups != 1:
        return f"it is a grouped convolution (groups={layer.groups})"
    if layer.padding_mode != "zeros":
        return f"it pads with {layer.padding_mode!r} values, not with zeros"
    if isinstance(layer.padding, str) and explicit_padding(layer) is None:
        return f"its padding {layer.padding!r} is not the same on both sides"
    return "" if calls == 1 else f"it runs {calls} times in one pass"


def explicit_padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Padding of a convolution in pixels, the same on both sides; None where it is not."""
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    if layer.padding == "valid":
        return 0, 0
    total = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)


def _refused(candidate: Candidate, layers: Iterable[str] | None, keep: Iterable[str], max_error: float) -> Candidate:
    reason = candidate.reason
    if reason:
        return candidate
    if candidate.name in keep:
        reason = "kept by request"
    elif layers is not None and candidate.name not in layers:
        reason = "not asked for"
    elif candidate.macs_saved <= 0:
        reason = "a separable pair would not save a multiply-accumulate"
    elif candidate.error is not None and candidate.error > max_error:
        reason = f"the error is above {max_error:g}"
    elif _is_slower(candidate):
        reason = "a separable pair would not be faster"
    return replace(candidate, reason=reason)


def _is_slower(candidate: Candidate) -> bool:
    dense, separable = candidate.dense_ms, candidate.separable_ms
    return dense is not None and separable is not None and separable >= dense


def _cost(candidate: Candidate) -> float:
    return (candidate.error or 0.0) / candidate.macs_saved


def _verdict(candidate: Candidate, chosen: bool, max_layers: int | None) -> Candidate:
    if candidate.reason:
        return candidate
    if chosen:
        return replace(candidate, accepted=True)
    return replace(candidate, reason=f"{max_layers} others err less per multiply-accumulate saved")
