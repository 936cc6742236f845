"""A card as a CycloneDX document, and where a file comes from in SLSA's terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.measure.values import Accuracy, Difference, Latency
from edgewise.report.rows import Row
from edgewise.run.origin import run_provenance
from edgewise.store.entries import file_digest
from edgewise.verify import manifest, model_card
from edgewise.verify.card import Card


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.fake"
    for suffix in ("", manifest.CARD):
        path.with_name(path.name + suffix).write_bytes(b"{}")
    manifest.write(path, "")
    return path


def card_of(path: Path) -> Card:
    versus = Difference(delta=0.0, ci95=(0.0, 0.0), p_value=1.0)
    latency = Latency(on="fake", batch=1, threads=2, p50_ms=0.25, p90_ms=0.5, ratio_to_baseline=0.5, ci95=(0.4, 0.6))
    row = Row(
        step="artifact", target="fake", params=1, macs=1, bytes=2,
        accuracy=Accuracy(top1=0.9, n=540, ci95=(0.87, 0.92), vs_baseline=versus), latency=latency,
        verification="runtime", undelegated=(), verdict="pass", reason="all is well", seconds=0.0,
    )  # fmt: skip
    return Card(
        target="fake", sha256=file_digest(path), recipe="r", model="m", data_digest="d" * 64, seed=0,
        input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=("a", "b"), max_drop=0.02, row=row,
        recipe_fields={"data": "digits"}, environment={"packages": {"torch": "2.13.0"}},
        input={"shape": [1, 1, 8, 8], "dtype": "float32", "meaning": "pixels"},
    )  # fmt: skip


def test_a_model_card_is_valid_and_holds_what_was_measured(file: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    text = model_card.write(file, card_of(file)).read_text(encoding="utf-8")
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = model_card.model_card(file, card_of(file))
    metrics = document["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {
        "type": "top-1 accuracy", "value": "0.9", "slice": "540 test images",
        "confidenceInterval": {"lowerBound": "0.87", "upperBound": "0.92"},
    }  # fmt: skip
    assert [metric["value"] for metric in metrics[1:]] == ["0.25", "0.5"]
    files = {
        entry["name"]: entry["hashes"][0]["content"] for entry in document["components"] if entry["type"] == "file"
    }
    assert files == {path.name: file_digest(path) for path in (file, file.with_name("net.fake.card.json"))}
    assert {"type": "library", "name": "torch", "version": "2.13.0", "purl": "pkg:pypi/torch@2.13.0"} in document[
        "components"
    ]


def test_provenance_names_the_recipe_and_all_that_it_rests_on(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"w")
    found = run_provenance(
        {"name": "r", "seed": 3}, data=("digits", "d"), weights=weights, model=("resnet20", "s"),
        environment={"python": "3.11", "threads": 2, "commit": "c0", "packages": {"torch": "2.13.0"}},
    )  # fmt: skip
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    build = found["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"recipe": {"name": "r", "seed": 3}}
    assert build["internalParameters"] == {"threads": 2}
    assert build["resolvedDependencies"] == [
        {"name": "data", "uri": "digits", "digest": {"edgewise-data": "d"}},
        {"name": "architecture", "uri": "resnet20", "digest": {"edgewise-source": "s"}},
        {"name": "weights", "uri": "w.safetensors", "digest": {"sha256": file_digest(weights)}},
        {"name": "edgewise", "uri": "git", "digest": {"gitCommit": "c0"}},
        {"uri": "pkg:pypi/torch@2.13.0"},
    ]
