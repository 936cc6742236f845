"""Which convolutions can be replaced, at what cost, and the verdict on each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import RequestError, name_nearest
from edgewise.measure.values import Interval
from edgewise.stages.fitting.layer_io import computes_as_declared, explicit_padding
from edgewise.stages.separate.forms import Form
from edgewise.store.json_values import decode, encode_fields
from edgewise.store.whole import write_whole


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layer that a cheaper form could replace, and what became of it."""

    name: str
    shape: str
    """Channels, kernel, stride and dilation, for people."""
    dense_macs: int
    """Multiply-accumulates of the layer for one image."""
    new_macs: int
    """The same of what would replace it."""
    input_shape: tuple[int, ...] = ()
    """Of one image's input to the layer, [1, C, H, W]."""
    middle: int = 0
    """Channels between the parts of what would replace it."""
    error: float | None = None
    """Relative error of the replaced layer's outputs on calibration images; None: not fitted."""
    dense_ms: float | None = None
    """Time of the layer alone on the declared runtime; None: not measured."""
    new_ms: float | None = None
    ratio_ci95: Interval | None = None
    """Of the new time over the old, measured interleaved."""
    cost: float | None = None
    """Mean Kullback-Leibler divergence, in nats, of the network's classes from the dense network's on calibration images
    with this layer alone replaced; None: no accuracy budget."""
    top1: float | None = None
    """Top-1 on calibration images with this layer added to those accepted before it; None: not tried."""
    accepted: bool = False
    reason: str = ""
    """Why it was accepted or stays; empty while it is open."""

    @property
    def macs_saved(self) -> int:
        """Negative where the new form takes more."""
        return self.dense_macs - self.new_macs

    @property
    def ms_saved(self) -> float | None:
        """None where the layer was not timed."""
        return None if self.dense_ms is None or self.new_ms is None else self.dense_ms - self.new_ms

    @property
    def gain(self) -> float:
        """What replacing it saves: milliseconds where they were measured, else multiply-accumulates."""
        milliseconds = self.ms_saved
        return float(self.macs_saved) if milliseconds is None else milliseconds

    def line(self) -> str:
        """One line for the person watching."""
        parts = [f"{self.name} ({self.shape})", "replaced" if self.accepted else "stays as it is"]
        if self.error is not None:
            parts.append(f"error {self.error:.3f}")
        if self.dense_ms is not None and self.new_ms is not None:
            parts.append(f"{self.dense_ms:.3f} to {self.new_ms:.3f} ms")
        parts.append(f"{self.dense_macs:,} to {self.new_macs:,} MACs")
        return ": ".join(parts[:2]) + ", " + ", ".join(parts[2:]) + (f"; {self.reason}" if self.reason else "")

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON types."""
        return encode_fields(self)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the person asked of the plan."""

    layers: tuple[str, ...] | None
    keep: tuple[str, ...]
    max_error: float
    max_layers: int | None


def survey_layers(model: nn.Module, images: Tensor, form: Form) -> list[Candidate]:
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
    return [_make_candidate(name, spatial[name], passes, form) for name, passes in calls.items()]


def refuse_unfit(candidates: Iterable[Candidate], wishes: Wishes) -> list[Candidate]:
    """The candidates with a reason at each that cannot or must not be replaced, from what is known of it so far."""
    return [c if c.reason else replace(c, reason=_objection(c, wishes)) for c in candidates]


def undecided_candidates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those without a verdict yet."""
    return [candidate for candidate in candidates if not candidate.reason]


def choose_layers(candidates: Sequence[Candidate], wishes: Wishes) -> tuple[Candidate, ...]:
    """The verdict without an accuracy budget: those with the least error per time (or MAC) saved, up to the limit."""
    by_error = sorted(undecided_candidates(candidates), key=lambda c: (c.error or 0.0) / c.gain)
    names = [c.name for c in by_error[: wishes.max_layers]]
    unit = "millisecond" if by_error and by_error[0].ms_saved is not None else "multiply-accumulate"
    reason = f"{wishes.max_layers} others err less per {unit} saved"
    return tuple(
        c
        if c.reason
        else replace(c, accepted=c.name in names, reason=describe_merits(c) if c.name in names else reason)
        for c in candidates
    )


def describe_merits(candidate: Candidate) -> str:
    """What speaks for a layer."""
    text = f"{1 - candidate.new_macs / candidate.dense_macs:.0%} of its multiply-accumulates saved"
    if candidate.dense_ms and candidate.new_ms is not None:
        text += f", {1 - candidate.new_ms / candidate.dense_ms:.0%} of its time"
    return text


def check_names(named_layers: Iterable[str], candidates: Iterable[Candidate], field: str) -> None:
    """Raise RequestError for a name that is no candidate of the network."""
    names = [c.name for c in candidates]
    for name in named_layers:
        if name not in names:
            near, choices = name_nearest(name, names), ", ".join(names) or "none"
            raise RequestError(f"{field} names {name!r}, which is nothing to replace here.{near} There are: {choices}")


def _is_spatial(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
        return False
    return not (module.groups == module.in_channels and module.groups > 1)


def _make_candidate(name: str, layer: nn.Module, passes: list[tuple[Tensor, Tensor]], form: Form) -> Candidate:
    assert isinstance(layer, nn.Conv2d)
    height, width = layer.kernel_size
    inputs, output = passes[0]
    dense = output[0, 0].numel() * height * width * layer.in_channels * layer.out_channels // layer.groups
    reason = _obstacle(layer, passes) or form.obstacle(layer)
    middle, macs = (0, dense) if reason else form.size(layer, inputs.shape, output.shape)
    return Candidate(
        name=name,
        shape=_shape(layer),
        dense_macs=dense * len(passes),
        new_macs=macs * len(passes),
        input_shape=(1, *inputs.shape[1:]),
        middle=middle,
        reason=reason,
    )


def _shape(layer: nn.Conv2d) -> str:
    text = f"{layer.in_channels} to {layer.out_channels}, {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    if max(layer.stride) > 1:
        text += f", stride {layer.stride[0]}"
    return text + (f", dilation {layer.dilation[0]}" if max(layer.dilation) > 1 else "")


def _obstacle(layer: nn.Conv2d, passes: list[tuple[Tensor, Tensor]]) -> str:
    calls = len(passes)
    if not computes_as_declared(layer, *passes[0]):
        return f"it is a {type(layer).__name__}, whose forward does more than a convolution"
    if layer.groups != 1:
        return f"it is a grouped convolution (groups={layer.groups})"
    if layer.padding_mode != "zeros":
        return f"it pads with {layer.padding_mode!r} values, not with zeros"
    if isinstance(layer.padding, str) and explicit_padding(layer) is None:
        return f"its padding {layer.padding!r} is not the same on both sides"
    return "" if calls == 1 else f"it runs {calls} times in one pass"


def _objection(candidate: Candidate, wishes: Wishes) -> str:
    if candidate.name in wishes.keep:
        return "kept by request"
    if wishes.layers is not None and candidate.name not in wishes.layers:
        return "not asked for"
    if candidate.macs_saved <= 0:
        return "the new form would not save a multiply-accumulate"
    if candidate.error is not None and candidate.error > wishes.max_error:
        return f"the error is above {wishes.max_error:g}"
    return _slowness(candidate)


def _slowness(candidate: Candidate) -> str:
    if candidate.ratio_ci95 is None or candidate.ratio_ci95[1] < 1:
        return ""
    low, high = candidate.ratio_ci95
    word = "slower" if low >= 1 else "not shown to be faster"
    return f"the new form is {word}: {low:.2f} to {high:.2f} of the layer's time"


def plan_facts(
    into: str,
    candidates: Sequence[Candidate],
    calibration: Mapping[str, float],
    *,
    max_drop: float | None = None,
    timed_on: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """The fact ``plan``, from which the report draws its picture; ``calibration``: images, and top-1 at each state."""
    accepted_layers = [c for c in candidates if c.accepted]
    return {
        "into": into,
        "max_drop": max_drop,
        "timed_on": timed_on,
        "threads": threads,
        "calibration": dict(calibration),
        "accepted": len(accepted_layers),
        "dense_macs": sum(c.dense_macs for c in accepted_layers),
        "new_macs": sum(c.new_macs for c in accepted_layers),
        "layers": [candidate.to_json() for candidate in candidates],
    }


def load_or_make_plan(folder: Path, subject: str, make: Callable[[], tuple[Candidate, ...]]) -> tuple[Candidate, ...]:
    """The plan for ``subject`` (a digest) that ``folder`` holds; where there is none it is made and kept there."""
    path = folder / f"plan-{subject[:16]}.json"
    if path.is_file():
        return tuple(decode(Candidate, entry, "plan") for entry in json.loads(path.read_text(encoding="utf-8")))
    plan = make()
    write_whole(path, json.dumps([candidate.to_json() for candidate in plan]).encode())
    return plan
