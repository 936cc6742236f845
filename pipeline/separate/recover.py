"""Before a network with new layers is fine-tuned: blocks that imitate the old ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.augment import Augment, augment
from pipeline.gather import captured
from pipeline.images import normalise
from pipeline.recipe import Context
from pipeline.training import State, rate, resume, write_state

_SECONDS_BETWEEN = 60.0


def imitate(
    student: nn.Module, teacher: nn.Module, points: Sequence[str], ctx: Context, *, steps: int, lr: float, batch: int
) -> list[float]:
    """Train ``student`` in place to answer at every point what ``teacher`` answers there; returns each step's loss.

    ``points`` are modules that both networks have. The loss is the mean over the points of E(s − t)² / Var t
    (Romero et al. 2014, FitNets, arXiv 1412.6550, with every block a hint); all points learn at once, on
    what the student itself feeds them, so that later blocks learn to make up for the errors of earlier ones. Adam
    (Kingma, Ba 2014, arXiv 1412.6980) with a half-cosine to 0; every step draws and augments its images from
    ``ctx.seed`` and its number. The state is kept in ``ctx.scratch`` once a minute, so that a killed training goes on
    from there (and returns the losses since).
    """
    state = State(student, torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr))
    resume(state, ctx.scratch)
    losses = []
    student.eval()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()  # everything else as the teacher runs it: dropout would only add noise to what is compared
    teacher.eval()
    kept = time.monotonic()
    with captured(student, points, "output") as ours, captured(teacher, points, "output") as theirs:
        for step in ctx.track(range(state.epoch, steps), f"imitating, {steps} steps", steps - state.epoch):
            for group in state.optimizer.param_groups:
                group["lr"] = lr * rate(step, steps, 0)
            images = _drawn(ctx, step, batch)
            with torch.no_grad():
                teacher(images)
            student(images)
            loss = torch.stack([_distance(ours[point], theirs[point]) for point in points]).mean()
            state.optimizer.zero_grad()
            torch.autograd.backward(loss)
            state.optimizer.step()
            losses.append(float(loss.detach()))
            state.epoch = step + 1
            if time.monotonic() - kept > _SECONDS_BETWEEN:
                write_state(state, ctx.scratch)
                kept = time.monotonic()
    student.eval()
    return losses


def _drawn(ctx: Context, step: int, batch: int) -> Tensor:
    """The augmented, normalised images of one step, on the device."""
    draw = torch.Generator().manual_seed(ctx.seed * 1_000_003 + step)
    chosen = torch.randint(len(ctx.data.train), (batch,), generator=draw)
    images = augment(ctx.data.train.batch(chosen), Augment(), ctx.data.flip, draw)
    return normalise(images, ctx.spec).to(torch.device(ctx.device))


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(found, wanted) / wanted.var().clamp_min(1e-12)
