"""What a step of block-wise distillation costs: ``python -m edgewise.studies.blockwise_step``.

The same step five times over, each with one more of what makes it cheap, interleaved in one run on random images. The
student is the network without every second block that can be taken out; its blocks learn to answer as the whole one's.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.library_noise import quieten_libraries
from edgewise.measure import latency, statistics
from edgewise.stage import Context
from edgewise.stages.remove_blocks.find import Block, find_blocks
from edgewise.stages.remove_blocks.plan import without_blocks
from edgewise.stages.training.blockwise import blockwise_distance, draw_batch, fold_teacher
from edgewise.stages.training.execution import autocast, order_memory
from edgewise.stages.training.loop import make_ahead
from edgewise.stages.training.settings import ComputePrecision, resolve_precision
from edgewise.studies.noise import noise_context

_BLOCKS = 12


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is computed."""

    name: str
    order: torch.memory_format = torch.contiguous_format
    folds: bool = False
    """Whether the teacher's batch norms are folded."""
    precision: ComputePrecision = "32-true"
    ahead: bool = False
    """Whether the next images are made while these are used."""


_LAST = torch.channels_last
WAYS = (
    Way(name="float32, channels-first"),
    Way(name="+ channels-last", order=_LAST),
    Way(name="+ folded teacher", order=_LAST, folds=True),
    Way(name="+ mixed precision", order=_LAST, folds=True, precision="auto"),
    Way(name="+ images made ahead", order=_LAST, folds=True, precision="auto", ahead=True),
)
"""The last is how a run does it (``distill_blockwise``)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table: steps a second of each way, and its time beside the first's."""
    parser = argparse.ArgumentParser(prog="python -m edgewise.studies.blockwise_step", description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    quieten_libraries()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ctx = noise_context(options.model, options.device, Path(folder))
        steps = make_steps(ctx, options.batch, stack)
        used = resolve_precision("auto", options.device)
        print(
            f"{options.model}, batch {options.batch}, {options.device}, mixed precision: {used}, "
            f"{torch.get_num_threads()} threads"
        )
        times = latency.interleave_calls(steps, seconds=options.seconds, blocks=_BLOCKS)
    reference = times[WAYS[0].name]
    for name, samples in times.items():
        ratio, (low, high) = statistics.ratio_interval(samples.blocks, reference.blocks)
        print(
            f"{name:24} {1000 / samples.percentile(50):7.2f} steps/s   {ratio:.2f} of the first's time, "
            f"95 % interval {low:.2f} to {high:.2f}"
        )
    return 0


def make_steps(
    ctx: Context, batch: int, stack: ExitStack, ways: Sequence[Way] = WAYS
) -> Mapping[str, Callable[[], None]]:
    """A step by its way's name, each on networks of its own; ``stack`` ends what they hold open.

    Raises RequestError for a network without blocks that can be taken out.
    """
    torch.manual_seed(0)
    whole = ctx.spec.build().eval().to(ctx.device)
    blocks = find_blocks(whole, draw_batch(ctx, 0, 2))
    if not blocks:
        raise RequestError(f"nothing of {ctx.spec.name} can be taken out; name a residual network")
    student = without_blocks(whole, blocks[1::2]).to(ctx.device)
    return {way.name: _make_step(way, student, whole, blocks, ctx, batch, stack) for way in ways}


def _make_step(
    way: Way, student: nn.Module, whole: nn.Module, blocks: Sequence[Block], ctx: Context, batch: int, stack: ExitStack
) -> Callable[[], None]:
    points = dict.fromkeys(block.name for block in blocks[::2])
    own = order_memory(copy.deepcopy(student), way.order)
    for module in own.modules():
        module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
    teacher = fold_teacher(whole, points, ctx) if way.folds else copy.deepcopy(whole)
    order_memory(teacher, way.order)
    optimizer = torch.optim.Adam(own.parameters(), 1e-6)
    distance = stack.enter_context(blockwise_distance(own, teacher, points))
    images = _draw_images(way, ctx, batch)
    if way.ahead:
        stack.callback(images.close)  # type: ignore[attr-defined]

    def step() -> None:
        with autocast(way.precision, ctx.device):
            loss = distance(next(images).contiguous(memory_format=way.order))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if ctx.device == "cuda":
            torch.cuda.synchronize()

    return step


def _draw_images(way: Way, ctx: Context, batch: int) -> Iterator[Tensor]:
    draw = partial(draw_batch, ctx, batch=batch)
    return make_ahead(draw, range(sys.maxsize)) if way.ahead else map(draw, count())


if __name__ == "__main__":
    sys.exit(main())
