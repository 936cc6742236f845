"""Time of single layers, as they are and in their new form, in the declared runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edgewise import targets
from edgewise.files.in_runtime import write_and_load
from edgewise.measure import statistics
from edgewise.measure.latency import interleave_calls
from edgewise.measure.values import Interval
from edgewise.stage import Context

_SECONDS = 0.6


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one layer."""

    dense_ms: float
    """Median of the layer as it is."""
    new_ms: float
    """Median of its new form."""
    ratio_ci95: Interval
    """Of the new time over the old."""


def layer_times(
    dense: nn.Module, new: nn.Module, layers: Mapping[str, tuple[int, ...]], ctx: Context
) -> dict[str, Times]:
    """Times of each layer in the two networks, as float files of one layer at batch 1.

    ``layers``: name -> shape of its input [1, C, H, W]. Layers of one geometry are timed once. Empty where the runtime
    ``ctx.runtime`` does not exist on this host. The two files are timed interleaved, on ``ctx.threads`` threads.
    """
    if targets.get(ctx.runtime).load is None:
        ctx.note(f"{ctx.runtime} does not run on this host: layers are not timed")
        return {}
    times: dict[str, Times] = {}
    times_by_layer = {}
    for name, shape in ctx.track(layers.items(), f"timing layers on {ctx.runtime}", len(layers)):
        pair = dense.get_submodule(name), new.get_submodule(name)
        geometry = f"{shape} {pair}"  # a module's text holds all its settings
        if geometry not in times:
            times[geometry] = _time_pair(*pair, shape, ctx)
        times_by_layer[name] = times[geometry]
    return times_by_layer


def _time_pair(dense: nn.Module, new: nn.Module, shape: tuple[int, ...], ctx: Context) -> Times:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(ctx.seed))
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as folder:
        runners = {
            kind: write_and_load(layer, image, Path(folder) / kind, ctx)[0]
            for kind, layer in (("dense", dense), ("new", new))
        }
        calls = {kind: partial(run, image) for kind, run in runners.items()}
        samples = interleave_calls(calls, seconds=_SECONDS, threads=ctx.threads)
    _, interval = statistics.ratio_interval(samples["new"].blocks, samples["dense"].blocks)
    return Times(dense_ms=samples["dense"].percentile(50), new_ms=samples["new"].percentile(50), ratio_ci95=interval)
