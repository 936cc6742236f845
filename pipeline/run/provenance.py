"""What a given network is fed, setting by setting, and where each was said: printed before it is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.images.normalise import channel_order
from edgewise.models import Spec
from edgewise.network.stated import per_channel_numbers
from edgewise.recipe import Recipe

_ASKED = "the request"


def override_spec(spec: Spec, recipe: Recipe) -> Spec:
    """``spec`` with the recipe's mean and deviation, where it gives any. Raises RequestError for what cannot be one."""
    if recipe.expect_top1 is not None and recipe.weights is None:
        raise RequestError("--expect-top1 says what given weights reach, and none are given; name them with --weights")
    overrides = {name: value for name in ("mean", "std") if (value := getattr(recipe, name)) is not None}
    fields: dict[str, Any] = {
        name: per_channel_numbers(v, f"--{name}", above_zero=name == "std") for name, v in overrides.items()
    }
    origins = {**spec.origins, **dict.fromkeys(overrides, _ASKED)}
    return dataclasses.replace(spec, **fields, origins=origins) if overrides else spec


def describe_feeding(spec: Spec, data: Data) -> list[str]:
    """One line a setting: mean, deviation, and how images are prepared, each with where it was said."""
    lines = [f"{name} {_numbers(getattr(spec, name))} ({origin_of(spec, name)})" for name in ("mean", "std")]
    if not data.prepared:
        return [
            *lines,
            f"images as they are, {data.shape[1]} × {data.shape[2]} pixels, {channel_order(data.shape[0])} (--data)",
        ]
    return lines + [f"{name}: {entry.value} ({entry.origin})" for name, entry in data.prepared.items()]


def assumed_fields(spec: Spec) -> list[str]:
    """Which of mean and deviation nobody stated."""
    return [name for name in ("mean", "std") if name not in spec.origins]


def image_warning(spec: Spec, data: Data) -> str:
    """What to say of a given network whose normalisation is assumed, or that is fed another size than it states."""
    warnings = []
    if names := assumed_fields(spec):
        warnings.append(
            f"nobody stated the {' and the '.join(names)} that the weights were trained with; {_numbers(spec.mean)} and "
            f"{_numbers(spec.std)} are assumed. Say them in the network's file or with --mean and --std"
        )
    size = spec.input_shape[1:]
    if "input_shape" in spec.origins and data.prepared and size != data.shape[1:]:
        warnings.append(
            f"{spec.origins['input_shape']} states images of {size[0]} × {size[1]}, these are "
            f"{data.shape[1]} × {data.shape[2]}"
        )
    return "; ".join(warnings)


def origin_of(spec: Spec, name: str) -> str:
    """Where a setting was said; ``default`` where nobody did."""
    return spec.origins.get(name, "default")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
