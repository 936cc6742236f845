"""Time of single layers, dense and separable, in the declared runtime."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import targets
from pipeline.latency import interleave
from pipeline.quantize import quiet_capture
from pipeline.recipe import Context
from targets import Runner

_SECONDS = 0.6


def layer_times(
    dense: nn.Module, separable: nn.Module, layers: Mapping[str, tuple[int, ...]], ctx: Context
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each layer in the two networks, as float files of one layer at batch 1.

    ``layers``: name -> shape of its input [1, C, H, W]. Layers of one geometry are timed once. Empty where the runtime
    ``ctx.runtime`` does not exist on this host. The two files are timed interleaved, on ``ctx.threads`` threads.
    """
    if targets.get(ctx.runtime).load is None:
        ctx.note(f"{ctx.runtime} does not run on this host: layers are not timed")
        return {}
    known: dict[str, tuple[float, float]] = {}
    found = {}
    for name, shape in ctx.track(layers.items(), "timing layers", len(layers)):
        pair = dense.get_submodule(name), separable.get_submodule(name)
        geometry = f"{shape} {pair}"  # a module's text holds all its settings
        if geometry not in known:
            known[geometry] = _timed(*pair, shape, ctx)
        found[name] = known[geometry]
    return found


def _timed(dense: nn.Module, separable: nn.Module, shape: tuple[int, ...], ctx: Context) -> tuple[float, float]:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(ctx.seed))
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as folder:
        runners = {
            kind: _loaded(layer, image, Path(folder) / kind, ctx)
            for kind, layer in (("dense", dense), ("separable", separable))
        }
        samples = interleave({kind: partial(run, image) for kind, run in runners.items()}, seconds=_SECONDS)
    return samples["dense"].percentile(50), samples["separable"].percentile(50)


def _loaded(layer: nn.Module, image: Tensor, path: Path, ctx: Context) -> Runner:
    target = targets.get(ctx.runtime)
    assert target.load is not None
    with quiet_capture():
        program = torch.export.export(copy.deepcopy(layer).cpu().eval(), (image,))
    written = target.export(program, path.with_suffix(target.suffix), targets.USUAL)
    return target.load(written.path, ctx.threads)
