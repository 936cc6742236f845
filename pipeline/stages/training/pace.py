"""How long training takes on this machine: a few of its steps, measured as they will be taken."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.images.normalise import normalise
from edgewise.models import Spec
from edgewise.stages.training.augment import change_images, draw_changes
from edgewise.stages.training.execution import autocast, fitting_order, fitting_precision, order_memory
from edgewise.stages.training.settings import Training
from edgewise.stages.training.teaching import make_teacher

_FIRST = 8
"""Images of the steps by which the measured batch is chosen."""
_MOST_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that one image takes."""

    train: float
    """Of a training step: made ready, forward, backward, and the optimizer's step."""
    ask: float
    """Of a teacher's answer, the same network without batch norms; 0 where none is asked."""
    batch: int
    """Images of the steps that were measured."""
    precision: str
    slowed: float = 1.0
    """How many times as long the steps took because others used the processors; the times are without that."""


def measure_pace(network: nn.Module, how: Training, data: Data, spec: Spec, device: str, seconds: float) -> Pace:
    """Warm steps of training ``network`` as ``how`` says, for about ``seconds``, in batches as large as those allow.

    Neither the network nor a random state changes.
    """
    with torch.random.fork_rng(devices=[]):
        steps = _Steps(network, how, data, spec, device)
        first = min(_FIRST, len(data.train), how.batch_size)
        steps.train(first)
        fits = int(seconds / _MOST_STEPS / max(steps.train(first) / first, 1e-9))
        steps.clock.reset()
        batch = max(first, min(fits, how.batch_size, len(data.train)))
        train = _warm_step_time(steps.train, batch, seconds)
        ready = min(steps.make(batch) for _ in range(2))
        ask = _warm_step_time(steps.ask, batch, seconds / 2) if how.distill else 0.0
    # A batch is made ready while the one before it is trained on.
    return Pace(
        train=max(train, ready) / batch,
        ask=ask / batch,
        batch=batch,
        precision=steps.precision,
        slowed=steps.clock.slowed,
    )


def _warm_step_time(step: Callable[[int], float], batch: int, seconds: float) -> float:
    """Median seconds of a step once it is warm: the first at a batch pays for memory, and for choosing kernels."""
    cold = step(batch)
    count = max(1, min(_MOST_STEPS, int(seconds / max(cold, 1e-9)) - 1))
    return statistics.median(step(batch) for _ in range(count))


class Clock:
    """Times work as it takes while nobody else uses the processors, and knows how much longer it took."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget what was timed."""
        self.wall = self.own = 0.0

    @property
    def slowed(self) -> float:
        """How many times as long everything timed took."""
        return self.wall / self.own if self.own else 1.0

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that ``work`` takes undisturbed.

        A lone thread computes all the time, so that its processor's time is what it takes; several wait for each other,
        so that only half of theirs says that others came between. What a GPU does is timed by the wall.
        """
        began, cpu_time = time.perf_counter(), time.process_time()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall, cpu_time = time.perf_counter() - began, time.process_time() - cpu_time
        threads = torch.get_num_threads()
        alone = self.device.type == "cuda" or cpu_time > (0.9 if threads == 1 else 0.5) * threads * wall
        own = wall if alone else min(wall, cpu_time / threads)
        self.wall, self.own = self.wall + wall, self.own + own
        return own


class _Steps:
    """Steps of one training, each timed."""

    def __init__(self, network: nn.Module, how: Training, data: Data, spec: Spec, device: str) -> None:
        self.how, self.data, self.spec, self.device = how, data, spec, torch.device(device)
        self.clock = Clock(self.device)
        self.precision = fitting_precision(how.precision, device, data.shape, network)
        usual = torch.contiguous_format
        self.order = fitting_order(self.device, data.shape, network) if how.channels_last else usual
        self.model = self._place(copy.deepcopy(network)).train()
        self.teacher = self._place(make_teacher(network, how, data, spec)) if how.distill else None
        kind = torch.optim.SGD if how.optimizer == "sgd" else torch.optim.AdamW
        # A rate of nothing: the arithmetic is the same, and no weight of a long measurement grows out of bounds.
        self.optimizer = kind(self.model.parameters(), lr=0.0)

    def _place(self, network: nn.Module) -> nn.Module:
        return order_memory(network.to(self.device), self.order)

    def make(self, count: int) -> float:
        """Seconds for a batch of so many images, changed and normalised."""
        return self.clock.time(lambda: self._make(count))

    def _make(self, count: int) -> None:
        index = torch.arange(count)
        changes = draw_changes(count, self.how.augment, self.data.flip, torch.Generator().manual_seed(0))
        normalise(change_images(self.data.train.batch(index), self.how.augment, changes), self.spec)

    def train(self, count: int) -> float:
        """Seconds for forward, backward, and the optimizer's step."""
        images, labels = self._images(count), self.data.train.labels[:count].to(self.device)
        return self.clock.time(lambda: self._train(images, labels))

    def _train(self, images: Tensor, labels: Tensor) -> None:
        with autocast(self.precision, self.device.type):
            answer = self.model(images)
        logits = answer[0] if isinstance(answer, (tuple, list)) else answer
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def ask(self, count: int) -> float:
        """Seconds for the teacher's answers."""
        images = self._images(count)
        return self.clock.time(lambda: self._ask(images))

    @torch.no_grad()
    def _ask(self, images: Tensor) -> None:
        assert self.teacher is not None
        with autocast(self.precision, self.device.type):
            self.teacher(images)

    def _images(self, count: int) -> Tensor:
        few = normalise(self.data.train.batch(torch.arange(min(count, _FIRST))), self.spec)
        images = few.repeat(-(-count // len(few)), 1, 1, 1)[:count].to(self.device)
        return images.contiguous(memory_format=self.order)
