"""Before a changed network is fine-tuned: its blocks imitate the old ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.images.normalise import normalise
from edgewise.network.fold_norms import without_norms
from edgewise.network.norm_pairs import find_norms
from edgewise.stage import Context
from edgewise.stages.fitting.layer_io import capture_values, run_until_seen
from edgewise.stages.training.augment import Augment, augment_images
from edgewise.stages.training.execution import autocast, fitting_order, fitting_precision, order_memory
from edgewise.stages.training.loop import learning_rate_share, make_ahead
from edgewise.stages.training.settings import ComputePrecision
from edgewise.stages.training.state import State, resume_state, write_state

_SECONDS_BETWEEN = 60.0

Points = Mapping[str, tuple[int, Sequence[int]] | None]
"""Module -> the axis of channels, and which of the teacher's the student has there; None: all."""


def distill_blockwise(
    student: nn.Module,
    teacher: nn.Module,
    points: Points,
    ctx: Context,
    *,
    steps: int,
    lr: float,
    batch: int,
    precision: ComputePrecision = "auto",
) -> list[float]:
    """Train ``student`` in place to answer at every point what ``teacher`` answers there; returns each step's loss.

    ``points`` are modules that both networks have, each with those of the teacher's channels that the student has, where
    they are not all. The loss is the mean over the points of E(s − t)² / Var t
    (Romero et al. 2014, FitNets, arXiv 1412.6550, with every block a hint); all points learn at once, on
    what the student itself feeds them, so that later blocks learn to make up for the errors of earlier ones. Adam
    (Kingma, Ba 2014, arXiv 1412.6980) with a half-cosine to 0; every step draws and augments its images from
    ``ctx.seed`` and its number. The state is kept in ``ctx.scratch`` once a minute, so that a killed training goes on
    from there (and returns the losses since). ``precision`` is that of ``Training``; both networks run in channels-last
    memory where they can, the teacher with its batch norms folded, and the next images are made while these are used.
    """
    device = torch.device(ctx.device)
    guide = fold_teacher(teacher, points, ctx)
    precision = fitting_precision(precision, ctx.device, ctx.input_shape, student, guide, note=ctx.note)
    order = fitting_order(device, ctx.input_shape, student, guide)
    order_memory(guide, order)
    order_memory(student, order)
    learning = [p for p in student.parameters() if p.requires_grad]
    state = State(student, torch.optim.Adam(learning, lr))
    shares = _step_shares(student, draw_batch(ctx, 0, 2))
    resume_state(state, ctx.scratch)
    losses = []
    student.eval()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()  # everything else as the teacher runs it: dropout would only add noise to what is compared
    last_save = time.monotonic()
    with blockwise_distance(student, guide, points) as distance:
        images = make_ahead(partial(draw_batch, ctx, batch=batch), range(state.epoch, steps))
        for step in ctx.track(range(state.epoch, steps), f"imitating, {steps} steps", steps - state.epoch):
            for group in state.optimizer.param_groups:
                group["lr"] = lr * learning_rate_share(step, steps, 0)
            with autocast(precision, device.type):  # for one step: within, it remembers the weights that it has rounded
                loss = distance(next(images).contiguous(memory_format=order))
            state.optimizer.zero_grad()
            torch.autograd.backward(loss)
            with _shortened_steps(learning, shares):
                state.optimizer.step()
            losses.append(float(loss.detach()))
            state.epoch = step + 1
            if time.monotonic() - last_save > _SECONDS_BETWEEN:
                write_state(state, ctx.scratch)
                last_save = time.monotonic()
    order_memory(student.eval(), torch.contiguous_format)
    return losses


_SHIFT = 3.0
"""A step at rate r moves the outputs of a layer without a norm by about this many times r of their spread."""


def _step_shares(student: nn.Module, probe: Tensor) -> dict[Tensor, Tensor]:
    """Which share of Adam's step the weights of layers without a norm behind them take.

    Adam moves every weight by the learning rate, whatever its size, and a filter's all at once: behind a ReLU, where
    inputs are positive, the filter's output moves by as much as all n steps together, sqrt(n) times as far beside its
    spread as one weight moves beside its size. A norm takes scale and mean of that out again. Where it is folded into the
    weights, whose sizes then differ by hundreds between channels, steps are measured by what they do to the output: a share
    of size / sqrt(n) for weights (as in You et al. 2020, arXiv 1904.00962, by the filter's size), of the output's spread for biases.
    """
    normed = find_norms(student, probe).pairs
    bare = {
        name: layer
        for name, layer in student.named_modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and name not in normed
    }
    shares: dict[Tensor, Tensor] = {}
    for name, (_, answer) in run_until_seen(student, bare, probe).items():
        layer = bare[name]
        shares[layer.weight] = (_SHIFT * _row_sizes(layer.weight.detach())).clamp(max=1.0)
        if layer.bias is not None:
            shares[layer.bias] = (_SHIFT * answer.float().std()).clamp(max=1.0)
    return shares


def _row_sizes(weight: Tensor) -> Tensor:
    """Root mean square of each output's n weights over sqrt(n), [O, 1, ...]; what has become 0 may leave it."""
    rows = weight.flatten(1)
    sizes: Tensor = rows.square().mean(1).sqrt().clamp_min(1e-6) / rows.shape[1] ** 0.5
    return sizes.reshape(-1, *[1] * (weight.dim() - 1))


@contextmanager
def _shortened_steps(parameters: Sequence[nn.Parameter], shares: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """While open, an optimizer's step moves each of the parameters by its share of it."""
    before = [(p, p.detach().clone(), shares[p]) for p in parameters if p in shares]
    yield
    with torch.no_grad():
        for parameter, old, share in before:
            parameter.copy_(old + share * (parameter - old))


def fold_teacher(teacher: nn.Module, points: Points, ctx: Context) -> nn.Module:
    """A copy of the teacher in evaluation mode without batch norms, where that changes the answers at no point."""
    probe = draw_batch(ctx, 0, 2)
    pairs = find_norms(teacher, probe).pairs
    if any(layer in points for layer in pairs):
        return copy.deepcopy(teacher).eval()
    return without_norms(teacher, probe).eval()


def draw_batch(ctx: Context, step: int, batch: int) -> Tensor:
    """The augmented, normalised images of one step, on the device."""
    draw = torch.Generator().manual_seed(ctx.seed * 1_000_003 + step)
    index = torch.randint(len(ctx.data.train), (batch,), generator=draw)
    images = augment_images(ctx.data.train.batch(index), Augment(), ctx.data.flip, draw)
    return normalise(images, ctx.spec).to(torch.device(ctx.device))


def distill_if_better(
    student: nn.Module,
    teacher: nn.Module,
    points: Points,
    ctx: Context,
    images: Sequence[Tensor],
    *,
    steps: int,
    lr: float,
    batch: int,
) -> tuple[float, float]:
    """``distill_blockwise`` in place, undone where the loss on ``images``, batches that are not trained on, has not fallen.

    Returns that loss before and after.
    """
    before = relative_distance(student, teacher, points, images)
    kept = copy.deepcopy(student.state_dict())
    distill_blockwise(student, teacher, points, ctx, steps=steps, lr=lr, batch=batch)
    after = relative_distance(student, teacher, points, images)
    note = f"{steps:,} steps of block-wise distillation: loss {before:.3f} -> {after:.3f}"
    if not after < before:
        student.load_state_dict(kept)
        note += f", undone; try a tenth of recover_lr {lr:g}, or leave recover_steps out"
    ctx.note(note)
    return before, after


@torch.no_grad()
def relative_distance(student: nn.Module, teacher: nn.Module, points: Points, batches: Sequence[Tensor]) -> float:
    """The loss of ``imitate`` on these normalised images, the mean over the batches; both networks in evaluation."""
    with blockwise_distance(student, teacher, points) as distance:
        return float(torch.stack([distance(images) for images in batches]).mean())


@contextmanager
def blockwise_distance(student: nn.Module, teacher: nn.Module, points: Points) -> Iterator[Callable[[Tensor], Tensor]]:
    """While open: images -> the mean distance of the student's answers at the points."""
    device = next(student.parameters()).device
    columns = {point: pair and (pair[0], torch.tensor(pair[1], device=device)) for point, pair in points.items()}

    def distance(images: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(images)
        student(images)
        return torch.stack(
            [_relative_distance(ours[p], _select_channels(theirs[p], indices)) for p, indices in columns.items()]
        ).mean()

    with capture_values(student, points, "output") as ours, capture_values(teacher, points, "output") as theirs:
        yield distance


def _select_channels(answer: Tensor, left: tuple[int, Tensor] | None) -> Tensor:
    return answer if left is None else answer.index_select(*left)


def _relative_distance(answer: Tensor, expected: Tensor) -> Tensor:
    return F.mse_loss(answer.float(), expected.float()) / expected.float().var().clamp_min(1e-12)
