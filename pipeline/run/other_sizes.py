"""A file tried at image sizes it was not captured at, against the PyTorch network at the same sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from edgewise.images import resized
from edgewise.images.sizes import Size, sizes_to_try
from edgewise.measure.agreement import compare_answers
from edgewise.measure.values import Agreement
from edgewise.network import checkpoint
from edgewise.run.steps import Model, Steps
from edgewise.store.json_values import encode_fields
from edgewise.targets import Precision, Runner

SAMPLE = 512
"""Test images, evenly spaced over the test set, that a file is tried on at each further size."""


@dataclass(frozen=True, kw_only=True)
class AtSize:
    """What a file does at one size."""

    size: Size
    agreement: Agreement
    top1: float
    """Share of the sample's images put into their own class; the network was not trained at this size."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        height, width = self.size
        return {"height": height, "width": width, "top1": self.top1, "agreement": encode_fields(self.agreement)}


def at_other_sizes(
    steps: Steps, model: Model, runner: Runner, digest: str, label: str, precision: Precision
) -> tuple[list[AtSize], float]:
    """How a file made from ``model`` does at every size it accepts and was not captured at, and the seconds taken.

    Nothing where the file accepts one size. ``digest``: of the file, with what evaluates it; ``precision``: the file's.
    """
    recipe = steps.job.recipe
    sizes, preprocess = recipe.packaging.sizes, recipe.preprocess

    @cache
    def network() -> nn.Module:
        return checkpoint.load(model.folder, sizes=sizes).model

    results, seconds = [], 0.0
    for size in sizes_to_try(sizes):
        expected, took = steps.answers_at(size, SAMPLE, lambda images: network()(images), model.digest, model.name)
        answers, more = steps.answers_at(size, SAMPLE, runner, digest, label, preprocess.fed)
        right = resized.sample_resized(steps.job.data.test, size, SAMPLE).labels
        agreement = compare_answers(answers.numpy(), expected.numpy(), precision, softmax=preprocess.softmax)
        top1 = float((answers.argmax(1) == right).to(torch.float64).mean())
        results.append(AtSize(size=size, agreement=agreement, top1=top1))
        seconds += took + more
    return results, seconds


def facts(results: Sequence[AtSize]) -> dict[str, Any]:
    """What a row tells of them."""
    return {"at_other_sizes": [entry.to_json() for entry in results]} if results else {}
