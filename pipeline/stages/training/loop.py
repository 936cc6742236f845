"""Training a network: one loop for baselines, fine-tuning and quantization-aware training.

Lightning Fabric holds device, precision and processes. What makes a run repeatable is kept here: every step draws from
generators seeded by (seed, epoch, step), and after every epoch, within one every few minutes, the whole state is written
aside and renamed, so that a killed training goes on from there and ends with the same bits.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise.errors import RequestError, StageError
from edgewise.images.normalise import normalise
from edgewise.library_noise import quieten_libraries
from edgewise.network.tensors import fill_tensors
from edgewise.stage import Context
from edgewise.stages.training import nodes
from edgewise.stages.training.augment import Changes, change_images, draw_changes
from edgewise.stages.training.execution import fitting_order, fitting_precision, make_precision, order_memory
from edgewise.stages.training.grouped_gradients import float_gradients
from edgewise.stages.training.settings import Decay, Training
from edgewise.stages.training.state import State, _plain_tensors, resume_state, write_state
from edgewise.stages.training.teacher import Teacher
from edgewise.store.user_code import load_again, loaded_files
from edgewise.store.whole import write_whole

_SECONDS_BETWEEN = 180.0
_WORTH_TELLING = 60.0
"""Seconds."""

T = TypeVar("T")


Hook = Callable[[nn.Module, int], None]


def fit(
    model: nn.Module,
    how: Training,
    ctx: Context,
    teacher: nn.Module | None,
    before_epoch: Hook | None = None,
    rebuild: Callable[[], nn.Module] | None = None,
) -> None:
    """Train ``model`` in place on ``ctx.data.train``; it ends in evaluation mode, in main memory.

    ``before_epoch(model, epoch)`` may change what is trained. ``rebuild()`` makes the same network, of whatever values,
    in another process, for a captured graph, which cannot be sent there. Raises StageError when the loss is no longer
    finite.
    """
    if how.distill and teacher is None:
        raise RequestError("distillation needs a trained baseline, and there is none while the baseline is trained")
    networks = [model] if teacher is None else [model, teacher]
    how = replace(
        how, precision=fitting_precision(how.precision, ctx.device, ctx.input_shape, *networks, note=ctx.note)
    )
    if how.nodes > 1:
        nodes.lead_training(_work(_portable_maker(model, rebuild), how, ctx, teacher, before_epoch), ctx.scratch)
        fill_tensors(model, _read_result(ctx.scratch))
        _set_mode(model.to("cpu"), training=False)
        return
    fabric = _fabric(how, ctx.device)
    if how.devices == 1:
        result = _run_epochs(fabric, model, how, ctx, teacher, before_epoch)
        fill_tensors(model, result)
    else:
        _in_processes(fabric, _portable_maker(model, rebuild), how, ctx, teacher, before_epoch)
        fill_tensors(model, _read_result(ctx.scratch))
    _set_mode(model.to("cpu"), training=False)


def _fabric(how: Training, device: str) -> Any:
    from lightning_fabric import Fabric

    nodes.quieten_fabric()
    strategy = "auto" if how.devices == 1 else "ddp_spawn"
    with warnings.catch_warnings():
        # Fabric hints at the cluster launcher and at precision plugins; neither concerns a run on one machine.
        warnings.simplefilter("ignore")
        return Fabric(
            accelerator=device, devices=how.devices, strategy=strategy, plugins=make_precision(how.precision, device)
        )


Maker = Callable[[], nn.Module]


def _portable_maker(model: nn.Module, rebuild: Maker | None) -> Maker:
    """What makes ``model`` with its values in another process."""
    if not isinstance(model, GraphModule):
        return _Same(model)
    if rebuild is None:
        raise RequestError("this captured graph cannot be rebuilt in another process; set devices=1 for it")
    return _Refilled(rebuild, _plain_tensors(model.state_dict()))


class _Same:
    """A copy: tensors that were sent to a process of the same machine lie in memory that the processes share."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.model)


class _Refilled:
    def __init__(self, rebuild: Maker, tensors: dict[str, Tensor]) -> None:
        self.rebuild, self.tensors = rebuild, tensors

    def __call__(self) -> nn.Module:
        model = self.rebuild()
        fill_tensors(model, self.tensors)
        return model


def _in_processes(
    fabric: Any, maker: Maker, how: Training, ctx: Context, teacher: nn.Module | None, before_epoch: Hook | None
) -> None:
    """Train in one process a device; the first writes the result."""
    fabric.launch(_work(maker, how, ctx, teacher, before_epoch).do)


def _work(maker: Maker, how: Training, ctx: Context, teacher: nn.Module | None, before_epoch: Hook | None) -> _Work:
    quiet = Context(spec=_portable_context(ctx), data=ctx.data, scratch=ctx.scratch, device=ctx.device, seed=ctx.seed)
    return _Work(maker, how, quiet, teacher, before_epoch)


def _read_result(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "result.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _portable_context(ctx: Context) -> Any:
    """The spec without its build function, which another process could not import from a user's file."""
    return replace(ctx.spec, build=nn.Identity, small={})


class _Work:
    """What each process does; an object, since Fabric takes collections and dataclasses among arguments apart."""

    def __init__(
        self, maker: Maker, how: Training, ctx: Context, teacher: nn.Module | None, before_epoch: Hook | None
    ) -> None:
        self.maker, self.how, self.ctx, self.teacher, self.before_epoch = maker, how, ctx, teacher, before_epoch

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, where the user's modules have to be before the objects made of them."""
        return _receive_work, (_UserModules(), self.maker, self.how, self.ctx, self.teacher, self.before_epoch)

    def train_on_nodes(self) -> None:
        """As ``do``, in each process of the group of all nodes."""
        self.do(nodes.open_fabric(self.how, self.ctx.device, self.how.precision))

    def do(self, fabric: Any) -> None:
        """Train; the first process writes the result."""
        result = _run_epochs(fabric, self.maker(), self.how, self.ctx, self.teacher, self.before_epoch)
        if fabric.is_global_zero:
            write_whole(self.ctx.scratch / "result.safetensors", save(_plain_tensors(result)))
        fabric.barrier()


class _UserModules:
    """Sent to another process, imports there what this one has imported of the user's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return load_again, (loaded_files(),)


def _receive_work(_: None, *fields: Any) -> _Work:
    """Arrived in another process, where Fabric announces itself before it calls ``do``."""
    quieten_libraries()
    nodes.quieten_fabric()
    return _Work(*fields)


def _run_epochs(
    fabric: Any, model: nn.Module, how: Training, ctx: Context, teacher: nn.Module | None, before_epoch: Hook | None
) -> dict[str, Tensor]:
    networks = [network for network in (model, teacher) if network is not None]
    if how.channels_last and fitting_order(fabric.device, ctx.input_shape, *networks) is not torch.channels_last:
        how = replace(how, channels_last=False)
    state = _initial_state(model, how)
    resume_state(state, ctx.scratch)
    module, optimizer = fabric.setup(_place_model(model, how, fabric.device), state.optimizer)
    if state.average is not None:
        state.average.to(fabric.device)
    guide = None if teacher is None or not how.distill else _prepare_teacher(fabric, teacher, how, ctx)
    epochs, clock = range(state.epoch, how.epochs), _Stopwatch(ctx, how)
    for epoch in ctx.track(epochs, f"training, {how.epochs} epochs", how.epochs - state.epoch):
        clock.start(whole=state.step == 0)
        if before_epoch is not None:
            before_epoch(model, epoch)
        # What may change the network before an epoch may not do so again within it.
        keep = (
            _every_few_minutes(state, ctx.scratch) if fabric.is_global_zero and before_epoch is None else _keep_nothing
        )
        _train_epoch(fabric, module, optimizer, state, how, ctx, guide, epoch, keep)
        if guide is not None:
            guide.end_epoch(fabric, epoch)
        state.epoch, state.step, state.losses = epoch + 1, 0, []
        if fabric.is_global_zero:
            write_state(state, ctx.scratch)
        fabric.barrier()
        clock.stop(epoch)
    network = model if state.average is None else state.average
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def _keep_nothing() -> None:
    pass


def _every_few_minutes(state: State, folder: Path) -> Callable[[], None]:
    """What keeps the state when it is called and the last time lies far enough back."""
    last = time.monotonic()

    def keep() -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN:
            write_state(state, folder)
            last = time.monotonic()

    return keep


class _Stopwatch:
    """Tells once how long a training will take: after its first whole epoch, and after the first without the teacher."""

    def __init__(self, ctx: Context, how: Training) -> None:
        self._ctx, self._how = ctx, how
        self._began: float | None = None
        self._told = False

    def start(self, *, whole: bool) -> None:
        """An epoch begins; ``whole``: at its first step."""
        self._began = time.monotonic() if whole else None

    def stop(self, epoch: int) -> None:
        """Epoch ``epoch`` has ended."""
        epochs, asking = self._how.epochs - epoch - 1, epoch < self._how.views
        if self._began is None or not epochs or (self._told and epoch != self._how.views):
            return
        self._told = True
        took = time.monotonic() - self._began
        if took * epochs > _WORTH_TELLING:
            most = "at most " if asking else ""
            self._ctx.note(
                f"an epoch took {_duration(took)}; {epochs} more take {most}about {_duration(took * epochs)}"
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _prepare_teacher(fabric: Any, network: nn.Module, how: Training, ctx: Context) -> Teacher:
    frozen = _place_model(copy.deepcopy(network).eval().requires_grad_(False), how, fabric.device)
    return Teacher(frozen, views=how.views, images=len(ctx.data.train), folder=ctx.scratch)


def _initial_state(model: nn.Module, how: Training) -> State:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": how.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if how.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.momentum > 0)
    else:
        optimizer = torch.optim.AdamW(groups, lr=how.lr)
    average = copy.deepcopy(model).requires_grad_(False) if how.ema else None
    return State(model, optimizer, average)


def _place_model(model: nn.Module, how: Training, device: torch.device) -> nn.Module:
    model.to(device)
    return order_memory(model, torch.channels_last) if how.channels_last else model


def _train_epoch(
    fabric: Any,
    module: nn.Module,
    optimizer: Any,
    state: State,
    how: Training,
    ctx: Context,
    teacher: Teacher | None,
    epoch: int,
    keep: Callable[[], None],
) -> None:
    _set_mode(state.model, training=True)
    steps = min(how.steps or math.inf, math.ceil(len(ctx.data.train) / how.batch_size))
    with torch.random.fork_rng(devices=[]):
        for step, (images, labels, which) in enumerate(_batches(fabric, how, ctx, epoch, state.step), state.step):
            place = 1 + step * fabric.world_size + fabric.global_rank
            torch.manual_seed(_mix_seed(ctx.seed, epoch, place))  # dropout and stochastic depth
            for group in optimizer.param_groups:
                group["lr"] = how.lr * learning_rate_share(epoch + step / steps, how.epochs, how.warmup, how.decay)
            images, labels = images.to(fabric.device), labels.to(fabric.device)
            if how.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with fabric.autocast(), float_gradients(how.precision, fabric.device.type):
                target = None if teacher is None else teacher.answer(images, which, epoch)
                outputs = module(images)
            loss = _loss(outputs, labels, target, how)
            fabric.backward(loss)
            if how.clip:
                fabric.clip_gradients(module, optimizer, max_norm=how.clip)
            optimizer.step()
            optimizer.zero_grad()
            _update_average(state, how.ema)
            state.losses.append(loss.detach())
            state.step = step + 1
            keep()
    state.loss = float(torch.stack([loss.to(fabric.device) for loss in state.losses]).mean())
    if not math.isfinite(state.loss):
        raise StageError(
            f"training diverged in epoch {epoch + 1}: the loss is {state.loss}; try a smaller lr than {how.lr:g}"
        )


def learning_rate_share(position: float, epochs: int, warmup: float, decay: Decay = "cosine") -> float:
    """Share of the peak learning rate at ``position`` epochs: linear warm-up, then a half cosine or a line down to 0."""
    if position < warmup:
        return (position + 1e-3) / (warmup + 1e-3)
    progress = (position - warmup) / max(epochs - warmup, 1e-9)
    return 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def _loss(outputs: Tensor | tuple[Tensor | None, ...], labels: Tensor, target: Tensor | None, how: Training) -> Tensor:
    main, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    assert main is not None
    loss = F.cross_entropy(main.float(), labels, label_smoothing=how.label_smoothing)
    for extra in others:
        if extra is not None:
            loss = loss + how.auxiliary * F.cross_entropy(extra.float(), labels, label_smoothing=how.label_smoothing)
    if target is None:
        return loss
    return (1 - how.distill) * loss + how.distill * distillation_loss(main.float(), target.float(), how.temperature)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the mean Kullback-Leibler divergence of the softened classes (Hinton et al. 2015, section 2).

    Both logits [N, classes]; returns a scalar in nats times T².
    """
    soft = F.log_softmax(student / temperature, 1)
    return (
        F.kl_div(soft, F.log_softmax(teacher / temperature, 1), reduction="batchmean", log_target=True) * temperature**2
    )


@torch.no_grad()
def _update_average(state: State, decay: float) -> None:
    if state.average is None:
        return
    model = state.model.state_dict()
    for name, ours in state.average.state_dict().items():  # by name: a copied graph lists its tensors in another order
        theirs = model[name]
        if ours.is_floating_point():
            ours.lerp_(theirs.to(ours.dtype), 1 - decay)
        else:
            ours.copy_(theirs)


def _batches(
    fabric: Any, how: Training, ctx: Context, epoch: int, first: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Shuffled, augmented, normalised batches of this process's share from number ``first`` on, each made while the one
    before it is used.

    Each is images [B, C, H, W], labels [B] and which of the training images they are [B].
    """
    part = ctx.data.train
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(_mix_seed(ctx.seed, epoch, 0)))
    chunks = [c[fabric.global_rank :: fabric.world_size] for c in torch.split(order, how.batch_size)]
    # A batch norm cannot be trained on one value a channel.
    chunks = ([chunk for chunk in chunks if len(chunk) > 1] or chunks)[: how.steps or None]

    view = _draw_epoch_changes(how, ctx, len(part), epoch % how.views, 1) if how.views else None

    def make(number: int) -> tuple[Tensor, Tensor, Tensor]:
        which = chunks[number]
        place = 1 + number * fabric.world_size + fabric.global_rank
        changes = _draw_epoch_changes(how, ctx, len(which), epoch, place) if view is None else view.of(which)
        return normalise(change_images(part.batch(which), how.augment, changes), ctx.spec), part.labels[which], which

    return make_ahead(make, range(first, len(chunks)))


def make_ahead(make: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
    """What ``make`` makes of each number; the next is made while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[T] | None = None
        for number in numbers:
            item, waiting = waiting, pool.submit(make, number)
            if item is not None:
                yield item.result()
        if waiting is not None:
            yield waiting.result()


def _draw_epoch_changes(how: Training, ctx: Context, count: int, epoch: int, number: int) -> Changes:
    """Random changes for ``count`` images, the same for the same seed, epoch and number."""
    draw = torch.Generator().manual_seed(_mix_seed(ctx.seed, epoch, number))
    return draw_changes(count, how.augment, ctx.data.flip, draw)


def _mix_seed(seed: int, epoch: int, number: int) -> int:
    return (seed * 1_000_003 + epoch) * 1_000_033 + number


def _set_mode(model: nn.Module, *, training: bool) -> None:
    # An exported graph has one behaviour, fixed when it was captured; it refuses to switch.
    if not isinstance(model, GraphModule):
        model.train(training)
