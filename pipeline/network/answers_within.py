"""Networks that answer with more than logits (a dictionary, a tuple, an object with fields), or with logits of 1 × 1 pixels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import RequestError

Path = tuple[str | int, ...]
_USUAL = ("logits", "out")
"""What the logits are called where several tensors may be they, the likelier name first."""


@dataclass(frozen=True)
class TakeAnswer:
    """Has a network answer with its logits alone, [N, classes]."""

    path: Path | list[str | int]
    """Keys, indices and names of fields that lead to them; empty: the answer itself."""
    flat: bool = False
    """Whether they come as [N, classes, 1, 1]."""

    def __call__(self, model: nn.Module) -> None:
        model.register_forward_hook(functools.partial(_taken, path=tuple(self.path), flat=self.flat))


def _taken(_module: nn.Module, _given: Any, answer: Any, *, path: Path, flat: bool) -> Any:
    for step in () if isinstance(answer, Tensor) else path:  # in training such a network may answer with logits alone
        answer = _entry(answer, step)
    return answer.flatten(1) if flat else answer


def _entry(answer: Any, step: str | int) -> Any:
    if isinstance(answer, Mapping) or isinstance(step, int):
        return answer[step]
    return getattr(answer, step)


def logits_within(answer: Any, classes: int, name: str) -> TakeAnswer | None:
    """Where in the ``answer`` to one image the logits of ``classes`` are; None: it is a tensor [1, classes], or holds none.

    Raises RequestError where several tensors may be they, and none is called logits.
    """
    if isinstance(answer, Tensor) and tuple(answer.shape) == (1, classes):
        return None
    candidates = [(path, tensor) for path, tensor in _tensors(answer, ()) if _is_logits(tensor, classes)]
    for name_of_logits in _USUAL if len(candidates) > 1 else ():
        if called := [(path, tensor) for path, tensor in candidates if path[-1] == name_of_logits]:
            candidates = called
            break
    if len(candidates) > 1:
        candidates = [
            one for one in candidates if _is_source(one[1], [tensor for _, tensor in candidates])
        ] or candidates
    if len(candidates) > 1:
        places = ", ".join(spelled(path) for path, _ in candidates)
        raise RequestError(
            f"{name} answers with {len(candidates)} tensors of {classes} values for an image ({places}); return the logits "
            "alone in evaluation, or call them 'logits'"
        )
    return TakeAnswer(candidates[0][0], flat=candidates[0][1].dim() > 2) if candidates else None


def spelled(path: Path | list[str | int]) -> str:
    """A path as Python writes it: ``['head'][0]``."""
    return "".join(f"[{step!r}]" for step in path)


def _is_logits(tensor: Tensor, classes: int) -> bool:
    return tensor.is_floating_point() and tuple(tensor.shape) in ((1, classes), (1, classes, 1, 1))


def _is_source(logits: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether all of ``tensors`` but ``logits`` itself are its probabilities, or their logarithms."""
    probabilities = (logits.softmax(1), logits.log_softmax(1), logits.sigmoid())
    others = [tensor for tensor in tensors if tensor is not logits]
    return all(any(_is_alike(tensor, one) for one in probabilities) for tensor in others)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-6)


def _tensors(answer: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(answer, Tensor):
        yield path, answer
        return
    entries: list[tuple[str | int, Any]] = []
    if isinstance(answer, Mapping):
        entries = list(answer.items())
    elif isinstance(answer, (tuple, list)):
        entries = list(enumerate(answer))
    elif hasattr(answer, "__dict__") and not isinstance(answer, nn.Module):
        entries = list(vars(answer).items())
    for step, value in entries:
        if isinstance(step, (str, int)):
            yield from _tensors(value, (*path, step))
