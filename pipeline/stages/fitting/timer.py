"""Networks and single layers as files of the declared runtime: how long a call takes, how large the file is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edgewise.files.in_runtime import write_and_load
from edgewise.measure.latency import interleave_calls
from edgewise.measure.statistics import ratio_interval
from edgewise.stage import Context
from edgewise.targets import Runner

_SECONDS = 2.0


@dataclass(frozen=True)
class Reading:
    """A network measured against the one a budget is a share of."""

    time: float
    """Time of one call divided by the other's, in one interleaved run."""
    reference_ms: float
    """Median time of the other, in milliseconds."""


class Clock:
    """Measures networks against one of them, in the runtime ``ctx.runtime`` on ``ctx.threads`` threads, at batch 1."""

    def __init__(self, folder: Path, model: nn.Module, ctx: Context) -> None:
        self._folder, self._ctx = folder, ctx
        self._image = torch.rand(1, *ctx.input_shape, generator=torch.Generator().manual_seed(ctx.seed))
        self._number = 0
        self._reference, self.bytes = self._write(model)

    def read(self, model: nn.Module) -> Reading:
        """Write, load and time ``model``; takes seconds."""
        runner, _ = self._write(model)
        contenders = {"ours": partial(runner, self._image), "reference": partial(self._reference, self._image)}
        times = interleave_calls(contenders, seconds=_SECONDS, threads=self._ctx.threads)
        ratio, _ = ratio_interval(times["ours"].blocks, times["reference"].blocks)
        return Reading(ratio, times["reference"].percentile(50))

    def size(self, model: nn.Module) -> int:
        """Bytes of the file that ``model`` becomes."""
        return self._write(model)[1]

    def _write(self, model: nn.Module) -> tuple[Runner, int]:
        self._number += 1
        return write_and_load(model, self._image, self._folder / f"network-{self._number}", self._ctx)


@contextmanager
def open_clock(model: nn.Module, ctx: Context) -> Iterator[Clock]:
    """A clock whose files are removed in the end. Raises StageError where the runtime does not exist on this host."""
    with tempfile.TemporaryDirectory(dir=ctx.scratch) as folder:
        yield Clock(Path(folder), model, ctx)
