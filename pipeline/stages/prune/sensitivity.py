"""How much accuracy each group of channels costs when it alone is pruned: the ground on which ratios are set."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.images.normalise import normalise
from edgewise.measure.batches import images_at_once
from edgewise.stages.fitting.batch_norms import fit_norms
from edgewise.stages.prune import plan
from edgewise.stages.prune.checked_cut import cut_and_check, find_groups
from edgewise.stages.prune.coupling import Group
from edgewise.stages.prune.importance import score_blocks
from edgewise.store.entries import key_of
from edgewise.store.sources import code_of

if TYPE_CHECKING:
    from edgewise.stage import Context
    from edgewise.stages.prune.settings import Settings


_BATCH = 128
_NORM_IMAGES = 256
"""Training images, at most, that batch norms are estimated on anew for one reading."""

Scan = dict[str, dict[float, "Reading"]]
"""Group -> share of its channels removed -> what was read then; 0 is the untouched network."""


@dataclass(frozen=True)
class Reading:
    """A network on calibration images."""

    top1: float
    """A fraction."""
    loss: float
    """Mean cross-entropy, in nats."""


def top1_by_ratio(
    model: nn.Module, how: Settings, ctx: Context, ratios: Sequence[float]
) -> dict[str, dict[float, float]]:
    """Group -> ratio -> top-1 (a fraction) with that share of the group's channels removed; see ``scan``."""
    scan = scan_groups(model, how, ctx, ratios)
    return {group: {ratio: reading.top1 for ratio, reading in curve.items()} for group, curve in scan.items()}


def scan_groups(model: nn.Module, how: Settings, ctx: Context, ratios: Sequence[float]) -> Scan:
    """Read the network once for every group and ratio with that share of the group's channels removed.

    ``how`` says which layers are kept, what makes a channel important, on how many calibration images the network is
    read, and whether batch norms are estimated anew; its budget, rounding and scope play no part. Ratio 0 is always
    there. At least one block of every group stays, so that the largest ratios of a narrow group may give the same
    reading. ``model`` is left as it was; what ``ctx.store`` knows is not read again. Raises RequestError for a ratio
    outside 0 … 1 and StageError where nothing can be pruned.
    """
    wrong = [ratio for ratio in ratios if not 0 <= ratio < 1]
    if wrong:
        raise RequestError(f"a ratio of a sensitivity scan must lie in 0 … 1, 1 excluded, found {wrong}")
    sorted_ratios = sorted({ratio for ratio in ratios if ratio > 0})
    whole = copy.deepcopy(model).eval().requires_grad_(True)
    groups = find_groups(whole, how, ctx).groups
    scores = score_blocks(how.importance, whole, groups, ctx, how.images)
    reading, key = read_network(whole, how.images, ctx), _digest(whole)
    progress = ctx.track(list(zip(groups, scores, strict=True)), "sensitivity of layers", len(groups))
    return {
        g.name: {0.0: reading} | _stored_readings(whole, g, importance, how, ctx, sorted_ratios, key)
        for g, importance in progress
    }


def loss_curves(scan: Scan, groups: Sequence[Group], scores: Sequence[Tensor]) -> list[list[float]]:
    """For every group what is lost after 0, 1, 2, … of its blocks are gone: the rise of the loss, never falling.

    Linear between the ratios read, and beyond the last with the last slope. Importance adds a millionth of the untouched
    network's loss in the end, which decides where the readings show no difference.
    """
    return [_curve(scan[group.name], group, importance) for group, importance in zip(groups, scores, strict=True)]


def read_network(model: nn.Module, images: int, ctx: Context) -> Reading:
    """The network on ``images`` calibration images (all where there are fewer), the same ones every time."""
    part, device = ctx.data.calib, next(model.parameters()).device
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(ctx.seed))[:images]
    with torch.inference_mode():
        chunks = torch.split(order, images_at_once(model, ctx.input_shape, _BATCH))
        answers = [model(normalise(part.batch(c), ctx.spec).to(device)).float().cpu() for c in chunks]
    logits, labels = torch.cat(answers), part.labels[order]
    return Reading(float((logits.argmax(1) == labels).float().mean()), float(F.cross_entropy(logits, labels)))


def to_json(scan: Scan) -> dict[str, dict[str, dict[str, float]]]:
    """The scan as JSON types."""
    return {group: {f"{ratio:g}": asdict(r) for ratio, r in curve.items()} for group, curve in scan.items()}


def _stored_readings(
    whole: nn.Module, group: Group, scores: Tensor, how: Settings, ctx: Context, ratios: Sequence[float], network: str
) -> dict[float, Reading]:
    if ctx.store is None:
        return _readings(whole, group, scores, how, ctx, ratios)
    part: Any = ctx.data
    key = key_of(
        kind="sensitivity",
        network=network,
        members=[[m.name, m.side, m.channels.tolist()] for m in group.members],
        order=scores.argsort(stable=True).tolist(),
        ratios=ratios,
        images=[how.images, min(how.reestimate, _NORM_IMAGES)],
        data=[part.digest, ctx.spec.mean, ctx.spec.std, ctx.seed],
        code=[code_of(Reading), torch.__version__],
    )

    def make(folder: Path, _: Path) -> None:
        readings = _readings(whole, group, scores, how, ctx, ratios)
        document = [[ratio, asdict(reading)] for ratio, reading in readings.items()]
        (folder / "readings.json").write_text(json.dumps(document), encoding="utf-8")

    document = json.loads((ctx.store.keep(key, make).path / "readings.json").read_text(encoding="utf-8"))
    return {float(ratio): Reading(**fields) for ratio, fields in document}


def _readings(
    whole: nn.Module, group: Group, scores: Tensor, how: Settings, ctx: Context, ratios: Sequence[float]
) -> dict[float, Reading]:
    readings: dict[float, Reading] = {}
    for ratio in ratios:
        trial = copy.deepcopy(whole)
        blocks = plan.weakest_blocks([scores], (min(round(ratio * group.blocks), group.blocks - 1),))
        cut_and_check(trial, [group], blocks, ctx)
        fit_norms(trial, min(how.reestimate, _NORM_IMAGES), ctx)
        readings[ratio] = read_network(trial, how.images, ctx)
    return readings


def _curve(readings: Mapping[float, Reading], group: Group, importance: Tensor) -> list[float]:
    shares = np.array(sorted(readings))
    rises = np.maximum.accumulate([readings[share].loss - readings[0.0].loss for share in shares])
    ratios = np.arange(group.blocks + 1) / group.blocks
    slope = (rises[-1] - rises[-2]) / (shares[-1] - shares[-2]) if len(shares) > 1 else 0.0
    along = np.interp(ratios, shares, rises) + slope * np.maximum(ratios - shares[-1], 0)
    finite = torch.where(torch.isfinite(importance), importance, 0.0).sort().values.cumsum(0)
    tie = np.concatenate([[0.0], (finite / finite[-1].clamp_min(1e-12)).numpy()])
    return [float(value) for value in along + 1e-6 * max(readings[0.0].loss, 1e-6) * tie]


def _digest(model: nn.Module) -> str:
    return hashlib.sha256(save({k: v.cpu().contiguous() for k, v in model.state_dict().items()})).hexdigest()
