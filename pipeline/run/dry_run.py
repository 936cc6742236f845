"""What a network of the user's would only meet after training, tried on a few images before it.

Each trial raises RequestError with the layer or the line of the user's code that stands in the way.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.errors import EdgewiseError, RequestError
from edgewise.network.batch_mates import takes_batches
from edgewise.network.captured import Prepare, export_graph
from edgewise.network.fold_norms import without_norms
from edgewise.network.where import line_clause, line_of
from edgewise.recipe import Recipe
from edgewise.stage import traits_of
from edgewise.targets import Grid


def rehearse_recipe(network: nn.Module, images: Tensor, recipe: Recipe, grids: tuple[Grid, ...]) -> bool:
    """Try everything that ``recipe`` will do to ``network`` on normalised ``images`` [N, C, H, W]; whether it takes
    images in batches. A recipe that neither trains nor changes it has no need of that."""
    name = recipe.model
    batches = check_batches(network, images, recipe)
    if has_training(recipe):
        _train_once(network, images, name)
    _try_capture(network, images, None if batches and recipe.quantize is not None else 1, name)
    if recipe.quantize is not None:
        for grid in grids:
            _try_preparation(network, images, grid, name)
    return batches


def check_batches(network: nn.Module, images: Tensor, recipe: Recipe) -> bool:
    """Whether ``network`` takes images in batches, each answered by itself. Raises RequestError where an answer depends on
    chance or on the other images, and where it takes none and the recipe has need of them."""
    batches = takes_batches(network, images)
    if not batches and has_changes(recipe):
        raise RequestError(
            f"{recipe.model} takes one image at a time: a batch of one is written into its code. With --weights, and a "
            "recipe of no stages and no quantization, it is judged image by image and written; for more, let its code take "
            "the batch from its input, as in x.flatten(1)"
        )
    return batches


def has_training(recipe: Recipe) -> bool:
    """Whether anything of the recipe trains."""
    steps = (*recipe.stages, *([] if recipe.quantize is None else [recipe.quantize]))
    return recipe.weights is None or any(traits_of(step).precision is not None for step in steps)


def has_changes(recipe: Recipe) -> bool:
    """Whether the recipe does anything but write the network as it comes."""
    return recipe.weights is None or bool(recipe.stages) or recipe.quantize is not None


def _train_once(network: nn.Module, images: Tensor, name: str) -> None:
    """One step, forward and backward."""
    own = copy.deepcopy(network).train()
    try:
        with torch.random.fork_rng(devices=[]):
            answers = own(images.clone())
    except Exception as error:
        raise _refuse_recipe(name, "fails in training", error) from error
    main = answers[0] if isinstance(answers, tuple) else answers
    if not isinstance(main, Tensor) or main.dim() != 2 or len(main) != len(images):
        raise RequestError(
            f"{name} answers {_describe_answers(answers)} in training; wanted logits [N, classes], or a tuple that begins with "
            "them. Return the rest only where it is asked for"
        )
    if not main.requires_grad:
        raise RequestError(f"nothing of {name} can be trained: no gradient reaches any of its weights (requires_grad)")
    try:
        loss = F.cross_entropy(main.float(), torch.zeros(len(images), dtype=torch.int64))
        torch.autograd.grad(loss, [p for p in own.parameters() if p.requires_grad], allow_unused=True)
    except Exception as error:
        raise _refuse_recipe(name, "cannot be trained", error) from error


def _describe_answers(answers: Any) -> str:
    if isinstance(answers, Mapping):
        return f"a {type(answers).__name__} with {', '.join(map(str, answers))}"
    if isinstance(answers, Tensor):
        return f"a tensor {tuple(answers.shape)}"
    return f"a {type(answers).__name__}"


def _try_capture(network: nn.Module, images: Tensor, batch: int | None, name: str) -> None:
    try:
        with _silence():
            export_graph(network, tuple(images.shape[1:]), batch)
    except Exception as error:
        what = "cannot be captured as a graph" + ("" if batch else " for any number of images")
        raise _refuse_recipe(name, what, error) from error


def _try_preparation(network: nn.Module, images: Tensor, grid: Grid, name: str) -> None:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    try:
        with _silence():
            Prepare(grid.to_json(), shape).capture(without_norms(network, images[:2]))
    except EdgewiseError:
        raise
    except Exception as error:
        raise _refuse_recipe(name, "cannot be prepared for quantization", error) from error


def _refuse_recipe(name: str, what: str, error: Exception) -> RequestError:
    message = str(error).strip()
    if "data-dependent" in message or "DataDependent" in type(error).__name__ or "Eq(u0" in message:
        reason = "its control flow depends on the values of the image; write both branches as arithmetic (torch.where)"
    else:
        reason = f"{type(error).__name__}: {message.splitlines()[0] if message else 'no reason given'}"
    return RequestError(f"{name} {what}{line_clause(line_of(error))}: {reason}")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Torch prints a failed graph several times over; the sentence that follows says what there is to say."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
