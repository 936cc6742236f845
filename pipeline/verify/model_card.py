"""A written file's card as a CycloneDX model card, version 1.6 (cyclonedx.org), for tools that keep inventories of software."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewise.store.whole import write_whole
from edgewise.verify import manifest
from edgewise.verify.card import Card

SUFFIX = ".cdx.json"


def path_of(artifact: Path) -> Path:
    """Where a file's model card lies."""
    return artifact.with_name(artifact.name + SUFFIX)


def write(artifact: Path, card: Card) -> Path:
    """Write the model card beside a file; returns its path. Raises EvidenceError without a manifest, StoreError."""
    return write_whole(path_of(artifact), json.dumps(model_card(artifact, card), indent=1, ensure_ascii=False))


def model_card(artifact: Path, card: Card) -> dict[str, Any]:
    """The CycloneDX document of a file, as JSON types."""
    name = artifact.name
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": name,
                "version": card.sha256[:16],
                "description": f"{card.model} by the recipe {card.recipe}, written for {card.target}",
                "modelCard": {
                    "modelParameters": _model_parameters(card),
                    "quantitativeAnalysis": {"performanceMetrics": list(_metrics(card))},
                    "considerations": {"technicalLimitations": [f"{card.row.verdict}: {card.row.reason}"]},
                },
            }
        },
        "components": [*_list_files(artifact), _data_entry(card), *_packages(card.environment.get("packages", {}))],
    }


def _model_parameters(card: Card) -> dict[str, Any]:
    return {
        "task": "image classification",
        "modelArchitecture": card.model,
        "datasets": [{"ref": "data"}],
        "inputs": [{"format": _side_format(card.input)}],
        "outputs": [{"format": _side_format(card.output)}],
    }


def _side_format(side: Mapping[str, Any]) -> str:
    return f"{side.get('dtype')} {side.get('shape')}, {side.get('meaning')}"


def _metrics(card: Card) -> Iterator[dict[str, Any]]:
    if card.row.accuracy is not None:
        low, high = card.row.accuracy.ci95
        yield _make_metric("top-1 accuracy", card.row.accuracy.top1, f"{card.row.accuracy.n} test images", low, high)
    if card.row.latency is not None:
        latency = card.row.latency
        low, high = latency.ci95
        where = f"batch {latency.batch}, {latency.threads} threads, {latency.on}"
        yield _make_metric("milliseconds, median of one call", latency.p50_ms, where)
        yield _make_metric("time over the baseline's", latency.ratio_to_baseline, where, low, high)


def _make_metric(
    kind: str, value: float, where: str, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    bounds = {} if low is None else {"confidenceInterval": {"lowerBound": str(low), "upperBound": str(high)}}
    return {"type": kind, "value": str(value), "slice": where} | bounds


def _list_files(artifact: Path) -> Iterator[dict[str, Any]]:
    """Every file of the artifact and of the evidence for it, with its digest."""
    for name, digest in manifest.read(artifact).items():
        yield {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def _data_entry(card: Card) -> dict[str, Any]:
    data_name = str(card.recipe_fields.get("data") or "data")
    return {
        "type": "data",
        "bom-ref": "data",
        "name": data_name,
        "version": card.data_digest[:16],
        "data": [{"type": "dataset", "name": data_name}],
    }


def _packages(versions: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, version in versions.items():
        yield {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
