"""What a contender's file does: its answers over the test images, and its time among the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise import targets
from edgewise.files.open import open_runtime
from edgewise.measure import latency, statistics
from edgewise.measure.answers import compute_logits
from edgewise.stage import Track
from edgewise.store.json_values import encode_fields
from edgewise.studies.peers.contenders import Contender, path_of
from edgewise.studies.peers.subject import Subject


def answers(contender: Contender, subject: Subject, folder: Path, track: Track) -> Tensor:
    """float32 logits [N, classes] of the file for every test image, in its runtime, on one thread."""
    runner = _open_contender(contender, folder)
    return compute_logits(
        runner, subject.data.test, subject.spec, track=track, label=f"{subject.name}, {contender.name}"
    )


def accuracy(own: Tensor, reference: Tensor, labels: Tensor, trained: bool) -> dict[str, Any]:
    """Top-1 beside the float file's of the same runtime where the network is trained, and agreement with it."""
    signal, noise = float(reference.square().sum()), float((own - reference).square().sum())
    figures: dict[str, Any] = {
        "n": len(own),
        "agreement": float((own.argmax(1) == reference.argmax(1)).float().mean()),
        "snr_db": None if noise == 0 else 10 * math.log10(signal / noise),
    }
    if trained:
        right, base = ((logit.argmax(1) == labels).numpy() for logit in (own, reference))
        figures["accuracy"] = encode_fields(statistics.judge_top1(right, base))
    return figures


def times(
    contenders: Mapping[str, Contender], subject_image: Tensor, folder: Path, seconds: float
) -> dict[str, dict[str, Any]]:
    """Every file called in turn on one image: median, 90th percentile, ratio to the float ONNX file and to each other."""
    calls: dict[str, Callable[[], object]] = {
        name: partial(_open_contender(contender, folder), subject_image) for name, contender in contenders.items()
    }
    samples = latency.interleave_calls(calls, seconds=seconds)
    first = next(iter(samples))
    fastest = {
        runtime: min(peers, key=lambda name: float(np.median(samples[name].blocks)))
        for runtime in {contender.runtime for contender in contenders.values()}
        if (peers := [n for n, c in contenders.items() if c.runtime == runtime and c.side == "peer"])
    }
    times_by_name = {}
    for name, sample in samples.items():
        times_by_name[name] = {"p50_ms": sample.percentile(50), "p90_ms": sample.percentile(90)}
        times_by_name[name] |= _ratio("float_onnx", sample, samples[first])
        if (peer := fastest.get(contenders[name].runtime)) is not None:
            times_by_name[name] |= _ratio("fastest_peer", sample, samples[peer]) | {"fastest_peer": peer}
    return times_by_name


def _ratio(name: str, ours: latency.Samples, theirs: latency.Samples) -> dict[str, Any]:
    ratio, interval = statistics.ratio_interval(ours.blocks, theirs.blocks)
    return {f"ratio_to_{name}": ratio, f"ratio_to_{name}_ci95": list(interval)}


def _open_contender(contender: Contender, folder: Path) -> targets.Runner:
    return open_runtime(targets.get(contender.runtime), path_of(contender, folder))


def image_of(subject: Subject) -> Tensor:
    """One normalised image [1, C, H, W] to time with."""
    return subject.calibration()[:1] if len(subject.data.calib) else torch.zeros(1, *subject.shape)
