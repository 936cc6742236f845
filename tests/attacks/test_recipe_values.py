"""Values that no recipe should have: each is refused before anything is trained, or is one that can be trained with."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import recipes
from edgewise.errors import RequestError
from edgewise.images.preprocess import Preprocess
from edgewise.recipe import Recipe
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.prune.sparsify import Sparsify
from edgewise.stages.quantize import Quantize
from edgewise.stages.separate import Separate
from edgewise.stages.separate.average_pool import AveragePool
from edgewise.stages.separate.pooled_head import PooledHead
from edgewise.stages.train import Train
from edgewise.stages.training.settings import Training
from edgewise.targets import Packaging, Sizes
from edgewise.verify.gates import Limits

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 0.5, -0.1, math.nan, math.inf, -math.inf, 10**30, -(10**400), 1e-300, "", "x",
    "adam", "no", "1", "\x00", "../../etc", "a" * 300, b"sgd", (), (1,), ("x",), (None,), [], ["onnx"], {}, {"lr": 1}, {1},
    1j, object(), int, len, np.float64(0.5), np.int64(3), np.zeros(2), torch.ones(()), Fold, Fold(), ((0, 0),), ((8, 8),),
    ((1_000_000, 1_000_000),), (("onnx",),), range(3),
)  # fmt: skip

BASES: tuple[Callable[[], Any], ...] = (
    recipes.demo, Limits, lambda: Training(epochs=2, lr=0.1), Train, Finetune, Fold, lambda: Prune(channels=0.7), Sparsify,
    Separate, PooledHead, AveragePool, Quantize, Preprocess, lambda: Packaging(sizes=None), lambda: Sizes(choices=((8, 8),)),
)  # fmt: skip


def fields() -> list[tuple[int, str]]:
    return [(n, field.name) for n, base in enumerate(BASES) for field in dataclasses.fields(base())]


def put(part: Any) -> Recipe:
    """A recipe with the part in its place."""
    demo = recipes.demo()
    if isinstance(part, Recipe):
        return part
    if isinstance(part, Sizes):
        part = Packaging(sizes=part)
    if isinstance(part, Training):
        part = Finetune(training=part)
    slots = {
        Limits: "limits",
        Train: "baseline",
        Quantize: "quantize",
        Preprocess: "preprocess",
        Packaging: "packaging",
    }
    if type(part) in slots:
        return dataclasses.replace(demo, **{slots[type(part)]: part})
    return dataclasses.replace(demo, stages=(part,))


def answered(base: int, name: str, value: Any) -> str:
    """``refused`` or ``accepted``; any other error is the test's."""
    try:
        recipe = put(dataclasses.replace(BASES[base](), **{name: value}))
    except RequestError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return "refused"
    document = recipe.describe()
    assert json.loads(json.dumps(document, allow_nan=False)) is not None
    return "accepted"


def drawn(count: int) -> Iterator[tuple[int, str, Any]]:
    draw = random.Random(0)
    places = fields()
    for _ in range(count):
        yield *draw.choice(places), draw.choice(ODD)


def test_odd_values_are_refused_or_can_be_described(many: bool, tally: Any) -> None:
    for base, name, value in drawn(20_000 if many else 2_000):
        tally("odd values in a recipe", "caught" if answered(base, name, value) == "refused" else "harmless")


@pytest.mark.parametrize(("base", "name"), fields())
def test_every_field_refuses_what_is_of_no_type_of_its(base: int, name: str) -> None:
    for value in (object(), 1j, {1}, b"sgd"):
        assert answered(base, name, value) == "refused", (name, value)


@settings(max_examples=200, deadline=None)
@given(
    place=st.sampled_from(fields()), value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
)
def test_no_plain_value_is_a_traceback(place: tuple[int, str], value: Any) -> None:
    assert answered(*place, value) in ("refused", "accepted")


@pytest.mark.parametrize("base", range(len(BASES)))
def test_a_misspelt_field_is_told_with_the_others(base: int) -> None:
    part = BASES[base]()
    first = dataclasses.fields(part)[0].name
    with pytest.raises((RequestError, TypeError), match=f"{first}x"):
        dataclasses.replace(part, **{f"{first}x": 1})
