"""Whether a cut gives what the network gives without the channels: tried, on numbers that leave no room for luck.

The reference is the uncut network in which every layer that reads the removed channels ignores them (its weights there are
zero), and every norm that averages over channels (layer norm, group norm) averages over those that are left: a group norm
loses as many of each of its groups, and keeps their number. Nothing else is changed, so that the cut network has to give the
same logits up to rounding; where an index is off, channels were shuffled, or a size is written into the code, it does not.

A network's own weights can hide that: a branch whose last scale is zero, as residual networks start, gives zeros however
wrongly it is cut. So cuts are tried on a copy in float64 with drawn weights of a magnitude that keeps signals alive, at a
reduced image size where the network takes one, and once more on the network itself.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgewise.errors import first_line
from edgewise.stages.prune.channels import BATCH_NORMS, INSTANCE_NORMS, WEIGHTED, channels_of, remaining_channels
from edgewise.stages.prune.coupling import Group, Removed, averaging_norms, cut_channels, silence_channels

SMALL = 64
"""Images are no larger than this where a network takes smaller ones."""
_OFF = 1e-6
"""Largest difference of the logits in float64, relative to what the removed channels did to them."""
_ROUNDING = 1e-11
"""The same relative to the largest logit, for channels that did nothing."""
_OFF_FLOAT32 = 1e-3
"""In float32, relative to the largest logit."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A network on which cuts are tried, and its images."""

    model: nn.Module
    images: Tensor

    def problem(self, groups: Sequence[Group], removed: Removed) -> str | None:
        """What is wrong with this cut; None if nothing."""
        after = copy.deepcopy(self.model)
        try:
            cut_channels(after, groups, removed)
            expected_answers = logits_without(self.model, groups, removed, self.images)
            with torch.no_grad():
                answers = after(self.images)
        except Exception as error:  # whatever a network's own code raises on other widths
            return f"the pruned network does not run ({first_line(error)[:160]})"
        return self._difference(answers, expected_answers)

    def _difference(self, answers: Tensor, expected: Tensor) -> str | None:
        if answers.shape != expected.shape:
            return f"its output has the shape {tuple(answers.shape)}, not {tuple(expected.shape)}"
        off, largest = float((answers - expected).abs().max()), float(expected.abs().max())
        if self.images.dtype == torch.float64:
            with torch.no_grad():
                effect = float((self.model(self.images) - expected).abs().max())
            tolerance = _OFF * effect + _ROUNDING * largest
        else:
            tolerance = _OFF_FLOAT32 * largest + 1e-6
        if off <= tolerance:  # and not for NaN
            return None
        share = f" ({off / largest:.1%} of the largest)" if largest > 0 and math.isfinite(off) else ""
        return f"logits differ by {off:.3g}{share} from those of the network with the removed channels ignored"


def own_bench(model: nn.Module, images: Tensor) -> Bench:
    """``model`` as it is; with one image where it takes no more."""
    bench = Bench(model, images)
    return bench if _is_sound(bench) else Bench(model, images[:1])


def drawn_bench(model: nn.Module, images: Tensor) -> Bench:
    """A copy of ``model`` with drawn weights, in float64 on the CPU where it runs so, else in float32.

    With one image where it takes no more; with its own weights where the drawn ones give no finite logits.
    """
    randomized = _draw_weights(copy.deepcopy(model).cpu().eval())
    for dtype, count in itertools.product((torch.float64, torch.float32), (len(images), 1)):
        bench = Bench(copy.deepcopy(randomized).to(dtype), images[:count].cpu().to(dtype))
        if _is_sound(bench):
            return bench
    return own_bench(copy.deepcopy(model).cpu().eval(), images.cpu().to(next(model.parameters()).dtype))


def _is_sound(bench: Bench) -> bool:
    try:
        with torch.no_grad():
            return bool(bench.model(bench.images).isfinite().all())
    except Exception:  # types written, or asked for, in the network's code, which may raise anything
        return False


@torch.no_grad()
def _draw_weights(model: nn.Module) -> nn.Module:
    """Weights of the size that keeps signals alive (He et al. 2015, arXiv 1502.01852), norms that leave none of them at 0."""
    draw = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor, low: float = 0.5, high: float = 1.5) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=draw) * (high - low) + low)

    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.dtype.is_floating_point:
                continue
            if isinstance(module, WEIGHTED) and name == "weight":
                fan = tensor[0].numel() if not getattr(module, "transposed", False) else tensor[:, 0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * math.sqrt(2 / max(fan, 1)))
            elif name in ("bias", "running_mean"):
                uniform(tensor, -0.2, 0.2)
            elif isinstance(module, (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm)) or isinstance(
                tensor, nn.Parameter
            ):
                uniform(tensor)
    return model


def logits_without(model: nn.Module, groups: Sequence[Group], removed: Removed, images: Tensor) -> Tensor:
    """The logits of the uncut ``model`` with the removed channels ignored: exact, also where norms average over some."""
    ignoring = copy.deepcopy(model)
    silence_channels(ignoring, groups, removed)
    channels = averaging_norms(groups, removed)
    with torch.no_grad(), _averaging_without(ignoring, channels):
        logits: Tensor = ignoring(images)
    return logits


@contextmanager
def _averaging_without(model: nn.Module, channels_by_norm: Mapping[str, Collection[int]]) -> Iterator[None]:
    """While open the named norms average over the channels that are not lost, and leave the others as they are."""
    mode = _Partial()
    with ExitStack() as hooks:
        for name, channels in channels_by_norm.items():
            module = model.get_submodule(name)
            enter, leave = mode.inside(module, channels)
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        if channels_by_norm:
            hooks.enter_context(mode)
        yield


class _Partial(TorchFunctionMode):
    """Computes the norms inside of some modules over part of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[tuple[nn.Module, list[int]]] = []

    def inside(self, module: nn.Module, channels: Collection[int]) -> tuple[Callable[..., None], Callable[..., None]]:
        """Hooks for before and after ``module`` runs."""
        remaining = remaining_channels(int(channels_of(module, "out")), channels)
        return lambda *_: self._running.append((module, remaining)), lambda *_: self._leave()

    def _leave(self) -> None:
        self._running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._running and func in (F.layer_norm, F.group_norm):
            return _partial_norm(func, *self._running[-1], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _partial_norm(
    func: Callable[..., Any], module: Any, channels: Sequence[int], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """``func``, a layer or group norm, on the kept channels alone; the others are left as they are."""
    dim = 1 if func is F.group_norm else x.dim() - 1
    places = torch.tensor(channels, device=x.device)
    part = x.index_select(dim, places)
    weight, bias = (None if t is None else t[places] for t in (module.weight, module.bias))
    if func is F.group_norm:
        answer = F.group_norm(part, module.num_groups, weight, bias, module.eps)
    else:
        answer = F.layer_norm(part, (len(channels),), weight, bias, module.eps)
    return x.index_copy(dim, places, answer)


def draw_removed(groups: Sequence[Group], seed: int) -> list[list[int]]:
    """Some blocks of every group: between a fifth and four fifths, at least one, never all.

    Every group has a share of its own, so that two of which as much must go are not taken for independent.
    """
    draw = torch.Generator().manual_seed(seed)
    shares = 0.2 + 0.6 * torch.rand(len(groups), generator=draw)
    counts = [
        min(max(1, round(float(share) * group.blocks)), group.blocks - 1)
        for share, group in zip(shares, groups, strict=True)
    ]
    return [
        sorted(torch.randperm(group.blocks, generator=draw)[:count].tolist())
        for group, count in zip(groups, counts, strict=True)
    ]


def wrong_group(bench: Bench, groups: Sequence[Group]) -> tuple[int, str] | None:
    """Number of a group that cannot be cut rightly, and what is wrong; None where every one can.

    All are cut at once, and where that fails halves of them, down to the one; what passes in halves and not together is
    told apart by adding one after the other.
    """
    for seed in (1, 2) if groups else ():
        removal = draw_removed(groups, seed)

        def problem(numbers: Sequence[int], removed: Removed = removal) -> str | None:
            return bench.problem([groups[n] for n in numbers], [removed[n] for n in numbers])

        numbers = range(len(groups))
        if problem(numbers) is not None:
            return _find_culprit(problem, numbers) or _last_straw(problem, numbers)
    return None


def _find_culprit(problem: Callable[[Sequence[int]], str | None], numbers: Sequence[int]) -> tuple[int, str] | None:
    """A number that is wrong alone, among some that are wrong together."""
    if len(numbers) == 1:
        wrong = problem(numbers)
        return None if wrong is None else (numbers[0], wrong)
    middle = len(numbers) // 2
    for half in (numbers[:middle], numbers[middle:]):
        if problem(half) is not None and (culprit := _find_culprit(problem, half)) is not None:
            return culprit
    return None


def _last_straw(problem: Callable[[Sequence[int]], str | None], numbers: Sequence[int]) -> tuple[int, str]:
    """The number with which those before it are wrong."""
    for count in range(2, len(numbers) + 1):
        wrong = problem(numbers[:count])
        if wrong is not None:
            return numbers[count - 1], f"together with others {wrong}"
    raise AssertionError("all of them together were wrong a moment ago")


def has_averaging(groups: Sequence[Group]) -> list[str]:
    """Norms of the groups whose averages a cut takes over fewer channels."""
    return sorted(averaging_norms(groups, [[0]] * len(groups)))
