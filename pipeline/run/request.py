"""From the command line's words to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgewise.errors import RequestError
from edgewise.targets import Sizes

if TYPE_CHECKING:
    pass
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgewise.images.sizes import show_size
from edgewise.recipe import Recipe

if TYPE_CHECKING:
    pass


def sizes_from_arguments(sizes: Sequence[Sequence[int]] | None, bounds: Sequence[int] | None) -> Sizes | None:
    """What the command line says: ``sizes``, each (height, width), and the ``bounds`` of a range of both sides."""
    pairs = tuple((height, width) for height, width in sizes or ())
    if bounds is None:
        return Sizes(choices=pairs) if pairs else None
    low, high = bounds
    if low > high:
        raise RequestError(f"a range of image sizes goes from the smaller to the larger, found {low} to {high}")
    outside = [show_size(size) for size in pairs if not all(low <= side <= high for side in size)]
    if outside:
        raise RequestError(f"the image size {outside[0]} lies outside the range {low} to {high}")
    return Sizes(choices=(*pairs, (low, low), (high, high)), ranged=True)


def override_fields(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields of ``changes`` that are not None."""
    return dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def with_packaging(recipe: Recipe, sizes: Sizes | None, preprocess: Mapping[str, Any]) -> Recipe:
    """The recipe with other image sizes, and with the fields of ``preprocess`` that are not None."""
    settings = {key: value for key, value in preprocess.items() if value is not None}
    packaging = recipe.packaging if sizes is None else dataclasses.replace(recipe.packaging, sizes=sizes)
    return dataclasses.replace(
        recipe, packaging=packaging, preprocess=dataclasses.replace(recipe.preprocess, **settings)
    )
