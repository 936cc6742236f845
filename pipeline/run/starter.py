"""A recipe to start from, written for a network and images: what is asked for by default, and what else suits, as comments."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from edgewise.measure.cost.totals import count_costs
from edgewise.measure.statistics import images_to_prove, provable_fall
from edgewise.network import architecture
from edgewise.report import numbers
from edgewise.run.job import Job
from edgewise.run.plan import CHANGED

_NAMED = 3
"""Blocks that are named."""


def write_recipe(job: Job, function: str, file: str) -> str:
    """The text of a Python ``file`` whose ``function`` returns the recipe of ``job``, with comments on what was seen.

    Run as it stands, it does what ``run`` does without a recipe; each comment that is code can be taken into it.
    """
    recipe, data = job.recipe, job.data
    network = architecture.build(job.base).eval()
    totals = count_costs(network, data.shape)
    shape = "×".join(map(str, data.shape))
    images = (
        f"{len(data.train):,} training, {len(data.calib):,} calibration and {len(data.test):,} test images of {shape}"
    )
    return f'''"""A recipe for {_plain(recipe.model)}, begun by edgewise init; what is behind # is worth a try.

    edgewise run {_plain(file)}:{function} --dry-run

'edgewise list stages prune' tells every field of a stage, 'edgewise list fields' those of a recipe.
"""

from edgewise import Finetune, Fold, Limits, Prune, Quantize, Recipe, RemoveBlocks, Train, Training  # noqa: F401


def {function}() -> Recipe:
    """{_plain(recipe.model)}, quantized; {numbers.count(totals.params)} parameters, {numbers.count(totals.macs)} multiply-accumulates an image, {len(data.classes):,} classes."""
    return Recipe(
        name={recipe.name!r},
        model={recipe.model!r},
        {_weights(recipe.weights)}
        # {images}.
        data={recipe.data!r},
        baseline={_construction(recipe.baseline)},
        stages=(
            # Half of the multiply-accumulates, then trained on with the network as it came as the teacher:
            # Prune(macs=0.5),
            # Finetune(training=Training(epochs=10, lr=0.01, distill=0.9)),
{_blocks(network, job)}            # {_norms(network)}
            Fold(),
        ),
        # Calibrated; trained on only where calibration loses more than half a point of top-1. Each layer's share in the loss
        # is a figure for the report, on so many images.
        quantize={_construction(recipe.quantize)},
        targets={recipe.targets!r},
        # Both are written and judged, and the fastest that passes is recommended.
        candidates={recipe.candidates!r},
        # {_proof(len(data.test), recipe.limits.max_drop)}
        limits=Limits(max_drop={recipe.limits.max_drop:g}),
    )
'''


def _plain(text: str) -> str:
    """A name that may stand in a docstring."""
    return text.replace("\\", "/").replace('"', "'")


def _weights(weights: str | None) -> str:
    return "# weights='w.pt',  # without any, the baseline is trained" if weights is None else f"weights={weights!r},"


def _construction(value: Any) -> str:
    """The expression that makes a value: of a dataclass, with the fields that are not as they are by default."""
    if not dataclasses.is_dataclass(value):
        return repr(value)
    chosen = (
        f"{field.name}={_construction(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != _default_of(field)
    )
    return f"{type(value).__name__}({', '.join(chosen)})"


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _blocks(network: nn.Module, job: Job) -> str:
    """What RemoveBlocks could do, where a block can go."""
    from edgewise.stages.remove_blocks.find import find_blocks

    blocks = [repr(block.name) for block in find_blocks(network, job.images())]
    if not blocks:
        return ""
    more = ", …" if len(blocks) > _NAMED else ""
    which = f"{len(blocks)} block{'s' if len(blocks) > 1 else ''} can go ({', '.join(blocks[:_NAMED])}{more})"
    return f"            # Fewer layers: {which}; also with a Finetune behind it:\n            # RemoveBlocks(latency=0.7),\n"


def _norms(network: nn.Module) -> str:
    count = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    if not count:
        return "There is no batch norm to take into the layer before it."
    return f"{count} batch norm{'s' if count > 1 else ''}: each goes into the layer before it, at no loss."


def _proof(n: int, limit: float) -> str:
    usual = provable_fall(n, CHANGED)
    text = (
        f"{n:,} test images can exclude a fall of {100 * usual:.1f} points where {CHANGED:.0%} of them change class; "
    )
    needed = None if usual <= limit else images_to_prove(limit, CHANGED)
    return text + (
        f"{limit:g} needs about {needed:,}." if needed else f"{limit:g} ({100 * limit:g} points) is within reach."
    )
