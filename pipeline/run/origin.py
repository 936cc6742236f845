"""Where a file comes from, in the terms of SLSA provenance v1 (slsa.dev/spec/v1.0/provenance).

External parameters are what was asked for, the recipe; resolved dependencies are what that named and what the run found: the
weights, the data, this program and every library, each with its digest or version. No time stands in it: the same run again
writes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.store.entries import file_digest

TYPE = "https://slsa.dev/provenance/v1"
BUILD = "urn:edgewise:run:1"
"""What a run is: its external parameters are a recipe's fields."""


def run_provenance(
    recipe: Mapping[str, Any],
    *,
    data: tuple[str, str],
    weights: Path | None,
    model: tuple[str, str],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The provenance of a run's files. ``data`` and ``model``: name and digest; ``environment``: the report's."""
    dependencies = [
        _material_entry("data", *data, "edgewise-data"),
        _material_entry("architecture", *model, "edgewise-source"),
        *([] if weights is None else [_material_entry("weights", weights.name, file_digest(weights), "sha256")]),
        *(_material_entry("edgewise", "git", commit, "gitCommit") for commit in [environment.get("commit")] if commit),
        *({"uri": f"pkg:pypi/{name}@{version}"} for name, version in environment.get("packages", {}).items()),
    ]
    return {
        "predicateType": TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {"recipe": dict(recipe)},
                "internalParameters": {name: environment[name] for name in ("threads", "cpu") if name in environment},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": "urn:edgewise", "version": {"python": str(environment.get("python"))}}},
        },
    }


def _material_entry(name: str, uri: str, digest: str, kind: str) -> dict[str, Any]:
    return {"name": name, "uri": uri, "digest": {kind: digest}}
