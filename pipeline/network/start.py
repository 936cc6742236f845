"""The network that everything starts from: built, out of its wrappers, with shapes and weights, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.network import answers_within, architecture, first_call, surgery, zoo
from edgewise.network.answers_within import TakeAnswer
from edgewise.network.architecture import Base
from edgewise.network.plain_layers import with_plain_layers
from edgewise.network.probabilities import Ending, judge_ending, last_softmax
from edgewise.network.unwrapped import unwrap_network
from edgewise.network.weights import load_weights
from edgewise.network.where import line_clause, line_of
from edgewise.network.whole import check_whole


class CannotTake(RequestError):
    """The network fails on an image of the data."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network as it is before anything is done to it on purpose, in evaluation."""

    model: nn.Module
    told: tuple[str, ...]
    """What had to be done to it, in sentences."""
    ending: Ending = "logits"
    """What it answers."""
    gave_probabilities: bool = False
    """Its own softmax was taken out, and belongs behind it in every file."""


def begin_network(base: Base, images: Tensor, weights: Path | None = None) -> Start:
    """The network of ``base`` for normalised ``images`` [N, C, H, W]: its tensors are fresh, or those of ``weights``.

    Raises RequestError where it cannot be built, cannot take an image, or the weights do not fit.
    """
    if weights is not None and str(weights) == zoo.PRETRAINED and zoo.is_of_a_package(base.model):
        network = zoo.load_pretrained(base.model, base.num_classes, base.in_channels)
        model, weights = unwrap_network(network, base.model), None
    else:
        model = architecture.build_told(base)
    start = Start(model=model.model.eval(), told=model.told)
    if lazy := first_call.lazy_layers(model.model):
        start = _apply_start(start, first_call.Materialise(list(images.shape[1:])), base.model)
        first_call.still_lazy(start.model)
        start = _with_note(
            start, f"{len(lazy)} lazy layers were given their shapes by an image {tuple(images.shape[1:])}"
        )
    check_whole(start.model, base.model)
    if weights is not None:
        start = _with_note(start, load_weights(start.model, weights))
    start = _logits_alone(start, _run_once(start.model, images, base.model), base)
    if first_call.changes_its_input(start.model, images[:1]):
        start = _apply_start(start, first_call.CopyInput(), base.model)
        start = _with_note(start, "the network writes into its input; it is handed a copy, here and in every file")
    return _without_softmax(replace(start, ending=judge_ending(start.model, images[:1])), images[:1])


def made_plain(start: Start, batches: Sequence[Tensor]) -> Start:
    """``start`` with plain layers wherever one computes the same on each of ``batches``, one an image size."""
    plain = with_plain_layers(start.model, *(batch[:1] for batch in batches))
    return replace(start, model=plain.model, told=(*start.told, *plain.sentences()))


def _with_note(start: Start, sentence: str) -> Start:
    return replace(start, told=(*start.told, sentence))


def _logits_alone(start: Start, answer: Any, base: Base) -> Start:
    taking = answers_within.logits_within(answer, base.num_classes, base.model)
    if taking is None:
        return start
    new_start = _apply_start(start, taking, base.model)
    if taking.path:
        place = answers_within.spelled(taking.path)
        new_start = _with_note(
            new_start, f"{place} of what the network answers is taken for the logits; no file holds the rest"
        )
    return _with_note(new_start, "the logits of 1 × 1 pixels are flattened") if taking.flat else new_start


def _apply_start(
    start: Start, operation: first_call.Materialise | first_call.CopyInput | TakeAnswer, name: str
) -> Start:
    try:
        operation(start.model)
    except Exception as error:
        raise _cannot_take(error, name) from error
    return replace(start, model=surgery.record(start.model, operation))


def _run_once(model: nn.Module, images: Tensor, name: str) -> Any:
    try:
        with torch.no_grad():
            return model(images[:1].clone())
    except Exception as error:
        raise _cannot_take(error, name) from error


def _cannot_take(error: Exception, name: str) -> CannotTake:
    return CannotTake(
        f"{name} fails on an image: {(str(error).strip().splitlines() or [type(error).__name__])[0]}{line_clause(line_of(error))}"
    )


def _without_softmax(start: Start, image: Tensor) -> Start:
    """The softmax layer at the end goes out of the network: training wants logits, and a file gets one behind it."""
    name = last_softmax(start.model, image) if start.ending == "probabilities" else None
    if name is None:
        return start
    model = surgery.apply(start.model, surgery.Replace({name: {"type": "Identity"}})).eval()
    note = f"layer {name!r}, the softmax at the end, is taken out of the network; every file has it behind the network"
    return _with_note(replace(start, model=model, ending="logits", gave_probabilities=True), note)
