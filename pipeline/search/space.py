"""A search space: a function that asks an Optuna trial for values and returns a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.catalogue import check_space_name
from edgewise.errors import EdgewiseError, RequestError, last_line
from edgewise.search.quantities import Bound
from edgewise.store import finished
from edgewise.store.entries import file_digest, key_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from edgewise.recipe import Recipe

_READY = Path(__file__).with_name("spaces.py")


class SpaceError(RequestError):
    """A space that is wrong, whatever values it is given: no trial of it can be run."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """A space with what the request changes in each of its recipes."""

    reference: str
    """A ready space's name, or path/to/space.py:function."""
    function: Callable[[BaseTrial], object]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the recipe: model, weights, data, targets, device, runtime; None: as the space says."""
    limits: tuple[Bound, ...] = ()
    """Those that gates of a run know are put into the recipe's own."""

    def make_recipe(self, trial: BaseTrial) -> Recipe:
        """The recipe for the values of a trial.

        Raises SpaceError where the space itself is at fault, and RequestError for values that make no recipe.
        """
        from edgewise.recipe import Recipe
        from edgewise.run.request import override_fields

        recipe = self._call(trial)
        if not isinstance(recipe, Recipe):
            raise SpaceError(
                f"{self.reference} returned {type(recipe).__name__}; a space takes a trial and returns an edgewise.Recipe"
            )
        return _with_limits(_rounded(override_fields(recipe, self.changes)), self.limits)

    def digests(self) -> dict[str, str]:
        """Each file of the space's code -> its digest: the space's own, and those of the user's that it imports."""
        path = _READY if ".py:" not in self.reference else Path(self.reference.rpartition(":")[0])
        files = finished.code_files(path) or [path]
        return {file.name: file_digest(file) for file in files}

    def _call(self, trial: BaseTrial) -> object:
        from optuna.exceptions import TrialPruned

        try:
            return self.function(trial)
        except TrialPruned as error:
            raise RequestError(f"the space gives this trial up{': ' if str(error) else ''}{error}") from error
        except RequestError:
            raise
        except EdgewiseError as error:
            raise RequestError(f"{self.reference}: {error}") from error
        except Exception as error:
            raise SpaceError(f"{self.reference} fails: {type(error).__name__}: {error} ({last_line(error)})") from error


def _rounded(value: Any) -> Any:
    """``value`` with every number in it to twelve digits: steps of a range give 0.6000000000000001, which is 0.6."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: new for name, old in fields.items() if (new := _rounded(old)) != old}
        return dataclasses.replace(value, **changed) if changed else value
    return value


_OF_FILES = {"latency": "max_latency_ratio", "bytes": "max_bytes", "peak_memory": "max_peak_bytes"}
"""Quantities that a target's files are limited in by a field of ``Limits``. Not the steps before them: a float step may be
slower than its int8 file is allowed to be."""


def _with_limits(recipe: Recipe, limits: Sequence[Bound]) -> Recipe:
    for bound in limits:
        name, target = bound.measure.quantity.name, bound.measure.on(recipe.targets)
        if name == "drop":
            recipe = dataclasses.replace(recipe, limits=dataclasses.replace(recipe.limits, max_drop=bound.value))
        elif name in _OF_FILES:
            value = bound.value if name == "latency" else int(bound.value)
            own = recipe.target_limits.get(target, recipe.limits)
            fields: dict[str, Any] = {_OF_FILES[name]: value}
            stricter = {target: dataclasses.replace(own, **fields)}
            recipe = dataclasses.replace(recipe, target_limits={**recipe.target_limits, **stricter})
    return recipe


def load_space(reference: str, changes: Mapping[str, Any], limits: Sequence[Bound] = ()) -> Space:
    """The space of a name, or of ``path/to/space.py:function``. Raises RequestError."""
    check_space_name(reference)
    from edgewise.network import architecture
    from edgewise.search import spaces

    own = ".py:" in reference
    function = architecture.load_function(reference) if own else getattr(spaces, reference)
    return Space(reference=reference, function=function, changes=changes, limits=tuple(limits))


def digest_recipe(recipe: Recipe) -> str:
    """What two trials share that ask for the same."""
    return key_of(recipe=recipe.describe())
