"""The card of a delivered file, from its job and its row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.images.normalise import channel_order
from edgewise.images.preprocess import is_channels_last
from edgewise.network import architecture
from edgewise.report.rows import Row
from edgewise.run.job import Job
from edgewise.run.origin import run_provenance
from edgewise.run.usage import write_usage
from edgewise.store.json_values import encode
from edgewise.store.whole import write_whole
from edgewise.targets import TargetError
from edgewise.verify.golden import Record

if TYPE_CHECKING:
    from torch import Tensor
from edgewise.verify.card import PROBES, Card, path_of


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A file in the report's folder, with what lies beside it."""

    artifact: Path
    sha256: str
    checkpoint: str
    """The name of its network among the delivered checkpoints."""
    environment: Mapping[str, Any]
    """Where it was measured, as the report has it."""
    looks: int = 0
    """How many networks and files had been judged on the test set, this one included."""
    golden: Record | None = None
    answers: Tensor | None = None
    """The file's, [N, classes], for the test images."""


def write(delivered: Delivered, row: Row, job: Job) -> None:
    """Write the card beside a delivered file."""
    sizes = job.recipe.packaging.sizes
    names = _tensor_names(delivered.artifact, row, job)
    card = Card(
        target=row.target or "",
        sha256=delivered.sha256,
        recipe=job.recipe.name,
        model=job.recipe.model,
        data_digest=job.data.digest,
        seed=job.recipe.seed,
        input_shape=job.data.shape,
        mean=tuple(job.spec.mean),
        std=tuple(job.spec.std),
        classes=job.data.classes,
        max_drop=job.recipe.limits.max_drop,
        row=row,
        recipe_fields=job.recipe.describe(),
        environment=delivered.environment,
        input=_input_fields(job) | ({"name": names[0]} if names else {}),
        output=({"name": names[1]} if names else {})
        | {
            "shape": [1, len(job.data.classes)],
            "dtype": "float32",
            "meaning": "probabilities" if job.recipe.preprocess.softmax else job.ending,
        },
        provenance=run_provenance(
            job.recipe.describe(),
            data=(job.data.name, job.data.digest),
            weights=job.weights,
            model=(job.recipe.model, architecture.code_digest(job.recipe.model)),
            environment=delivered.environment,
        ),
        test_set_looks=delivered.looks,
        search_trials=job.searched,
        golden=delivered.golden,
        checkpoint=delivered.checkpoint,
        fed=job.recipe.preprocess.fed,
        softmax=job.recipe.preprocess.softmax,
        sizes=sizes.choices[1:] if sizes else (),
        ranged=bool(sizes and sizes.ranged),
        images=job.data.options,
        answers=_probe_answers(delivered.answers),
    )
    text = json.dumps(encode(card), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path_of(delivered.artifact), text.encode())
    write_usage(delivered.artifact, card)


def _probe_answers(answers: Tensor | None) -> tuple[tuple[float, ...], ...]:
    """Of the first test images; none where one is no finite number, which a card cannot hold."""
    probes = None if answers is None else answers[:PROBES]
    return () if probes is None or not probes.isfinite().all() else tuple(map(tuple, probes.tolist()))


def _tensor_names(artifact: Path, row: Row, job: Job) -> tuple[str, str] | None:
    """What the file calls its input and its output; None where its runtime has no names for them, or cannot tell."""
    target = next((target for target in job.targets if target.name == row.target), None)
    if target is None or target.tensors is None:
        return None
    with contextlib.suppress(TargetError):
        return target.tensors(artifact)
    return None


def _input_fields(job: Job) -> dict[str, Any]:
    channels, height, width = job.data.shape
    order = {"channels": channel_order(channels)}
    fed = job.recipe.preprocess.fed
    shape = [1, height, width, channels] if is_channels_last(fed) else [1, channels, height, width]
    if fed == "bytes":
        return {"shape": shape, "dtype": "uint8", **order, "meaning": "bytes as a camera gives them"}
    return {
        "shape": shape,
        "dtype": "float32",
        **order,
        "meaning": "bytes / 255, less mean, over std, each per channel",
    }
