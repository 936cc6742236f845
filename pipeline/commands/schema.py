"""``edgewise schema``: what report.json and a file's card hold, as JSON Schema for the programs that read them."""

from __future__ import annotations

import argparse
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json

KINDS = ("report", "card")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def add_parser(commands: Any) -> None:
    """``schema report|card``."""
    parser = add_command(commands, "schema", "the JSON Schema of report.json or of a file's card", print_schema)
    parser.add_argument("kind", choices=KINDS)


def print_schema(options: argparse.Namespace) -> int:
    """Print one of the schemas."""
    print_json(make_schema(options.kind))
    return PASSED


def make_schema(kind: str) -> dict[str, Any]:
    """The schema of ``report`` or ``card``, made from the dataclasses that are written and read."""
    return {"$schema": _DIALECT} | (_card_schema() if kind == "card" else _report_schema())


def _card_schema() -> dict[str, Any]:
    from pydantic import TypeAdapter

    from edgewise.verify.card import Card

    return TypeAdapter(Card).json_schema(mode="serialization")


def _report_schema() -> dict[str, Any]:
    """The document around the rows is ``Report.to_json``'s; what can be missing there is not required here."""
    from pydantic.json_schema import models_json_schema

    from edgewise.report.document import SCHEMA

    parts = _part_models()
    references, definitions = models_json_schema(
        [(model, "serialization") for model in parts.values()], ref_template="#/$defs/{model}"
    )
    by_name = {name: references[model, "serialization"] for name, model in parts.items()}
    lists = {name: {"type": "array", "items": by_name[name]} for name in parts if name != "next"}
    return {
        "title": "report.json",
        "description": "What a run of Edgewise measured: one row a step and a file, the files, and which to take.",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "recipe": {"type": "object", "description": "Every field of the recipe."},
            "environment": {"type": "object", "description": "The machine and the versions of the libraries."},
            **lists,
            "next": by_name["next"],
            "stopped": {"type": "string", "description": "Why the run ended before it came to its files."},
        },
        "required": ["schema", "recipe", "environment", "rows", "artifacts"],
        "additionalProperties": False,
        "$defs": definitions["$defs"],
    }


def _part_models() -> dict[str, Any]:
    """Key of the report -> a model of what lies under it."""
    from pydantic import RootModel

    from edgewise.report.advice import Advice
    from edgewise.report.document import Section
    from edgewise.report.recommend import Recommendation
    from edgewise.report.rows import ArtifactFile, Row

    kinds = {"rows": Row, "artifacts": ArtifactFile, "recommended": Recommendation, "sections": Section, "next": Advice}
    return {name: RootModel[kind] for name, kind in kinds.items()}  # type: ignore[valid-type]
