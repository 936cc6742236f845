"""The published schemas are those of what is written, and what is written keeps to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.commands.schema import KINDS, make_schema
from edgewise.report.document import Report

DOCS = Path(__file__).parents[3] / "docs" / "schemas"
SAMPLE = Path(__file__).parent / "report.json"


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schema_is_the_one_that_is_made(kind: str) -> None:
    """Renew it with: edgewise schema KIND > docs/schemas/KIND.schema.json"""
    assert json.loads((DOCS / f"{kind}.schema.json").read_text(encoding="utf-8")) == make_schema(kind)


def written(**changes: Any) -> dict[str, Any]:
    """A report as it is written: read, with an open point so that advice is in it, and turned into JSON again."""
    document = json.loads(SAMPLE.read_text(encoding="utf-8"))
    document["rows"][1] |= {"verdict": "not-checked", "reason": "too few images"} | changes
    return Report.from_json(document).to_json()


def test_a_written_report_keeps_to_its_schema() -> None:
    validate = pytest.importorskip("jsonschema").validate
    document = written()
    assert "next" in document
    validate(json.loads(json.dumps(document)), make_schema("report"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("rows"),
        lambda d: d.update(schema=2),
        lambda d: d.update(more=1),
        lambda d: d["rows"][0].update(verdict="fine"),
        lambda d: d["rows"][0].update(params="many"),
        lambda d: d["artifacts"][0].pop("sha256"),
    ],
)
def test_a_spoilt_report_does_not(spoil: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = written()
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(json.dumps(document)), make_schema("report"))
